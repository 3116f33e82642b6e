package shell

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// screen is a terminal's output that can be waited for.
type screen struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newScreen() *screen { return &screen{more: make(chan struct{}, 1)} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case s.more <- struct{}{}:
	default:
	}
	return s.text.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await waits until the screen showed want.
func (s *screen) await(want string) {
	for !strings.Contains(s.String(), want) {
		<-s.more // a test that hangs here is ended by go test's own timeout
	}
}

func TestTTY(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program, Grace: quick})
		out := newScreen()
		tty := &TTY{Out: out, Size: Size{33, 101}}
		r, err := s.Run(t.Context(), Command{Text: "cd /usr; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all; echo direct >/dev/tty", TTY: tty})
		if err != nil || out.String() != "33 101\r\nall\r\ndirect\r\n" || r.Dir != "/usr" {
			t.Errorf("%q %v", out.String(), err)
		}
		says(t, s, "pwd; { echo x >/dev/tty; } 2>/dev/null || echo none", "/usr\nnone\n") // the terminal is not the next command's
		says(t, s, "sleep 0", "")
	})
}

func TestTTYInput(t *testing.T) {
	s := start(t, Options{Grace: quick})
	out, in := newScreen(), strings.NewReader("typed\n")
	r, err := s.Run(t.Context(), Command{Text: "read x; echo got $x; cat; echo end", TTY: &TTY{In: in, Out: out}})
	if err != nil || r.ExitCode != 0 || !strings.HasSuffix(out.String(), "got typed\r\nend\r\n") {
		t.Errorf("%q %+v %v", out.String(), r, err)
	}
}

// ^C stops the command and not the shell.
func TestTTYInterrupt(t *testing.T) {
	s := start(t, Options{Grace: quick})
	run(t, s, "x=1")
	for _, text := range []string{"sh -c 'echo ready; exec sleep 1000'; echo no", "echo ready; while :; do :; done; echo no"} {
		out := newScreen()
		r, w := io.Pipe()
		go func() {
			out.await("ready")
			w.Write([]byte("\x03"))
		}()
		res, err := s.Run(t.Context(), Command{Text: text, TTY: &TTY{In: r, Out: out}})
		if err != nil || res.ExitCode != 130 || res.Restarted || strings.Contains(out.String(), "no") {
			t.Errorf("%q: %q %+v %v", text, out.String(), res, err)
		}
		w.Close()
		says(t, s, "echo $x", "1\n")
	}
}

func TestTTYResize(t *testing.T) {
	s := start(t, Options{Grace: quick})
	out, sizes := newScreen(), make(chan Size)
	go func() {
		out.await("ready")
		sizes <- Size{50, 132}
	}()
	text := "trap 'stty size; trap - WINCH; go=1' WINCH; echo ready; until [ -n \"$go\" ]; do sleep 0.01; done; unset go"
	if _, err := s.Run(t.Context(), Command{Text: text, TTY: &TTY{Out: out, Resize: sizes}}); err != nil || !strings.HasSuffix(out.String(), "50 132\r\n") {
		t.Errorf("%q %v", out.String(), err)
	}
}

func TestTTYPrograms(t *testing.T) {
	s := start(t, Options{Grace: quick, Env: CleanEnv(EnvOptions{Term: "xterm"})})
	for _, c := range []struct{ program, text, ready, keys string }{
		{"top", "top -d 100", "PID", "q"},
		{"vim", "vim -u NONE -N +startinsert", "INSERT", "hello\x1b:q!\r"},
	} {
		if _, err := exec.LookPath(c.program); err != nil {
			t.Logf("not installed: %s", c.program)
			continue
		}
		out := newScreen()
		r, w := io.Pipe()
		go func() {
			out.await(c.ready)
			w.Write([]byte(c.keys))
		}()
		res, err := s.Run(t.Context(), Command{Text: c.text, TTY: &TTY{In: r, Out: out}})
		if err != nil || res.ExitCode != 0 {
			t.Errorf("%s: %+v %v", c.program, res, err)
		}
		w.Close()
		says(t, s, "echo ok", "ok\n")
	}
}

// A job that keeps the terminal does not hold the command up, nor the shell.
func TestTTYJob(t *testing.T) {
	s := start(t, Options{Grace: quick})
	out := newScreen()
	r, err := s.Run(t.Context(), Command{Text: "sleep 1000 & echo hi", TTY: &TTY{Out: out}})
	if err != nil || out.String() != "hi\r\n" || len(r.Survivors) != 1 {
		t.Errorf("%q %+v %v", out.String(), r.Survivors, err)
	}
	says(t, s, "kill $! && wait $!; echo $?", "143\n")
	if _, err := s.Run(t.Context(), Command{Text: "exit 3", TTY: &TTY{}}); err != nil {
		t.Error(err)
	}
	says(t, s, "echo ok", "ok\n")
}

// An owner that may not take the terminal away keeps the shell alive all the same.
func TestTTYKept(t *testing.T) {
	s := start(t, Options{Grace: quick, force: fallback{noSteal: true}})
	for range 2 {
		out := newScreen()
		if r, err := s.Run(t.Context(), Command{Text: "x=1; tty >/dev/null && echo hi", TTY: &TTY{Out: out}}); err != nil || r.Restarted {
			t.Errorf("%+v %v", r, err)
		}
		says(t, s, "echo $x", "1\n")
	}
}

// What a command leaves unread comes back, lines and the beginning of one, without ^D;
// but not from another user's shell.
func TestTTYUnread(t *testing.T) {
	for user, want := range map[string]string{"": "second\npart", "nobody": ""} {
		s := start(t, Options{User: user, Grace: quick})
		in, keys, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		out, got := newScreen(), ""
		go func() {
			out.await("ready")
			keys.WriteString("first\nsecond\n\x04paxx\x7f\x7frt")
			out.await("rt") // typed last, and
			out.await("taken")
			s.Interrupt()
		}()
		tty := &TTY{In: in, Out: out, Unread: func(p []byte) { got += string(p) }}
		if _, err := s.Run(t.Context(), Command{Text: "echo ready; read x; echo taken; sleep 1000", TTY: tty}); err != nil || got != want {
			t.Errorf("%q: %q %v", user, got, err)
		}
		says(t, s, "echo $x", "first\n")
		in.Close()
		keys.Close()
	}
}
