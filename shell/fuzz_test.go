package shell

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// FuzzRun feeds any text; whatever it does, the shell answers the next command.
// The commands run as nobody, in / and with an empty PATH: builtins are what can
// harm the protocol, and programs what can harm the machine.
func FuzzRun(f *testing.F) {
	for _, text := range []string{
		"", ":", "echo $((1/0))", "'", "\"", "$(", "<<X", "cat <<X\n", "a=(", "if", "}", ")", ";;", "&", "|", "!", "\\", "#",
		"set -n", "set -e; false", "exit 3", "exec", "return", "break 9", "trap '' INT", "f() { f; }", "unset -f f", "\xff\xfe",
		"eval eval eval", "exec 0<&-", "readonly IFS", "__deployx_s=7", "alias x='", "printf %s >&0", "${x:?}", "[[ a", "case x in", "coproc :",
	} {
		f.Add(text)
	}
	s, err := Start(context.Background(), Options{User: "nobody", Env: []string{"PATH="}, Grace: Grace{Interrupt: 50 * time.Millisecond, Terminate: time.Millisecond}})
	if err != nil {
		f.Skip(err)
	}
	f.Cleanup(func() { s.Close() })
	fresh := s.Context()
	f.Fuzz(func(t *testing.T, text string) {
		if strings.ContainsRune(text, 0) || len(text) > 1<<16 {
			t.Skip()
		}
		c := Command{Text: text, Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}, Timeout: 200 * time.Millisecond}
		if _, err := s.Run(context.Background(), c); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		r, err := s.Run(context.Background(), Command{Text: "\\builtin echo ok", Stdout: &out, Timeout: patience})
		if err != nil || r.TimedOut {
			t.Fatal(r, err)
		}
		// Text may redefine what "echo ok" means (set -v, a DEBUG trap, exit in a trap); it may not silence the shell.
		if out.String() != "ok\n" && !strings.ContainsAny(text, "=()") && !strings.Contains(text, "trap") {
			t.Errorf("%q then %q", text, out.String())
		}
		s.reset(t, fresh)
	})
}

// reset gives each text a fresh shell when the last one changed it.
func (s *Shell) reset(t *testing.T, fresh Context) {
	if bytes.Equal(s.Context(), fresh) {
		return
	}
	s.current().kill()
	s.mu.Lock()
	s.context = fresh
	s.mu.Unlock()
}
