package shell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestStatus(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		for text, want := range map[string]int{
			":": 0, "false": 1, "(exit 42)": 42, "nosuchcommand": 127, "/": 126,
			"echo 'open": 2, "echo ( x": 2, "if true; then": 2, "echo hi &&": 2, "}": 2,
			"sh -c 'kill -9 $$'": 137, "return 5": 5, "": 0, " \n ": 0, "# only this": 0,
		} {
			s := start(t, Options{Program: program})
			if _, errs, r := run(t, s, text); r.ExitCode != want || r.Restarted {
				t.Errorf("%q ends with %d, restarted %v, want %d (%s)", text, r.ExitCode, r.Restarted, want, errs)
			}
			if want != 0 && want != 127 {
				says(t, s, "echo $?", fmt.Sprintln(want))
			}
		}
	})
}

func TestStreamsAreApart(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program})
		out, errs, _ := run(t, s, "echo out; echo err >&2; printf '\\000\\377\\r\\n'")
		if out != "out\n\x00\xff\r\n" || errs != "err\n" {
			t.Errorf("%q, %q", out, errs)
		}
		var both bytes.Buffer
		c := Command{Text: "for i in 1 2 3; do echo o$i; echo e$i >&2; done", Stdout: &both, Stderr: &both}
		if _, err := s.Run(t.Context(), c); err != nil || both.String() != "o1\ne1\no2\ne2\no3\ne3\n" {
			t.Errorf("%q, %v", both.String(), err)
		}
	})
}

func TestStdin(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program})
		says(t, s, "cat; echo end", "end\n") // nil is an end of file
		out, _, _ := runCommand(t, s, Command{Text: "read a; echo $a", Stdin: strings.NewReader("1\n2\n3\n")})
		if out != "1\n" {
			t.Errorf("%q", out)
		}
		says(t, s, "echo next", "next\n") // and what is left is nobody's

		big := strings.Repeat("x", 3<<20)
		out, _, _ = runCommand(t, s, Command{Text: "wc -c", Stdin: strings.NewReader(big)})
		if strings.TrimSpace(out) != fmt.Sprint(len(big)) {
			t.Errorf("%q", out)
		}
	})
}

// A reader that gives nothing must not hold up a command that ends.
func TestStdinThatWaits(t *testing.T) {
	s := start(t, Options{})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	runCommand(t, s, Command{Text: "echo hi", Stdin: struct{ *os.File }{r}})
	w.WriteString("left\n")
	out, _, _ := runCommand(t, s, Command{Text: "read x; echo $x", Stdin: r}) // handed over this time
	if out != "left\n" {
		t.Errorf("%q", out)
	}
}

func TestFilesAreHandedOver(t *testing.T) {
	s := start(t, Options{})
	name := t.TempDir() + "/f"
	for _, c := range []struct {
		flags int
		old   string
		seek  int64
		want  string
		same  bool // the command has the very file, not a pipe
	}{
		{os.O_RDWR, "", 0, "1\n2\n", true},
		{os.O_RDWR | os.O_APPEND, "old\n", 0, "old\n1\n2\n", true},
		{os.O_RDWR, "old\n", 4, "old\n1\n2\n", true},
		{os.O_RDWR, "oldest\n", 2, "ol1\n2\n\n", false},
	} {
		if err := os.WriteFile(name, []byte(c.old), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, c.flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.Seek(c.seek, 0)
		if _, err := s.Run(t.Context(), Command{Text: "echo 1; [ -f /dev/stdout ]", Stdout: f}); err != nil {
			t.Fatal(err)
		}
		if same := strings.Contains(string(s.Context()), "@status 1\n0"); same != c.same {
			t.Errorf("%+v: handed over %v", c, same)
		}
		f.WriteString("2\n") // the caller goes on where the command ended
		if got, _ := os.ReadFile(name); string(got) != c.want {
			t.Errorf("%+v: file holds %q", c, got)
		}
		f.Close()
	}
	in, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	in.Seek(2, 0)
	if out, _, _ := runCommand(t, s, Command{Text: "cat", Stdin: in}); out != "1\n2\n\n" {
		t.Errorf("%q", out)
	}
}

// TestEnded: who asks is told once, before Run returns, that the text has ended, when
// nothing of it runs on.
func TestEnded(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		for text, want := range map[string]int{
			": >f": 1, "sh -c ': >f'": 1, ": >f; (exit 3)": 1, ": >f; echo $(echo a | cat)": 1, ": >f; }": 1,
			": >f; sleep 1000 >/dev/null 2>&1 &": 0, ": >f; exit": 0, ": >f; exec sh -c :": 0,
		} {
			dir := t.TempDir()
			s := start(t, Options{Program: program, Dir: dir})
			told := 0
			_, _, r := runCommand(t, s, Command{Text: text, Ended: func() {
				told++
				if _, err := os.Stat(filepath.Join(dir, "f")); err != nil && !strings.HasSuffix(text, "}") {
					t.Errorf("%q had not run: %v", text, err)
				}
			}})
			if told != want {
				t.Errorf("%q: told %d times, want %d", text, told, want)
			}
			for _, p := range r.Survivors {
				unix.Kill(p.PID, unix.SIGKILL)
			}
			says(t, s, "echo next", "next\n")
		}
	})
}

func TestNUL(t *testing.T) {
	s := start(t, Options{})
	if _, err := s.Run(t.Context(), Command{Text: "echo a\x00b"}); !errors.Is(err, ErrNUL) {
		t.Error(err)
	}
	says(t, s, "echo ok", "ok\n")
}

func TestText(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program})
		says(t, s, "cat <<X\n$((1+1)) 'a' \"b\"\nX", "2 'a' \"b\"\n")
		says(t, s, "cat <<'X'\n$no\nX\necho after", "$no\nafter\n")
		says(t, s, "echo 'it'\\''s' \"\\\"q\\\"\" \\\\", "it's \"q\" \\\n")
		says(t, s, "printf '%s\\n' 'two\nlines'", "two\nlines\n")
		says(t, s, "echo ü€𝄞", "ü€𝄞\n")
		says(t, s, "echo a # comment", "a\n")
		says(t, s, "echo a \\", "a \\\n") // as they all do
		big := strings.Repeat("x", 1<<20)
		began := time.Now()
		out, _, _ := run(t, s, "v='"+big+"'; echo ${#v}; unset v")
		if out != fmt.Sprintln(len(big)) {
			t.Errorf("%q", out)
		}
		t.Logf("1 MiB of text: %v", time.Since(began))
	})
}

func TestSpecial(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program, Dir: "/usr"})
		r := says(t, s, "cd bin; export A=1; echo $OLDPWD", "/usr\n")
		if r.Dir != "/usr/bin" || r.Context.Dir() != "/usr/bin" {
			t.Error(r.Dir)
		}
		says(t, s, "pwd; echo $A", "/usr/bin\n1\n")
		says(t, s, "cd - >/dev/null; pwd", "/usr\n")
		_, _, r = runCommand(t, s, Command{Text: ":", Dir: "/etc", Env: []string{"SNAP=it's\n7", "A=2"}})
		if r.Dir != "/etc" {
			t.Error(r.Dir)
		}
		out, _, _ := runCommand(t, s, Command{Text: "sh -c 'echo $SNAP $A'", Env: []string{"SNAP=x", "A=3"}})
		if out != "x 3\n" {
			t.Errorf("%q", out)
		}
		says(t, s, "pwd; echo $A ${SNAP-unset}; sh -c 'echo $A'", "/etc\n1 unset\n1\n")
		if _, err := s.Run(t.Context(), Command{Text: ":", Dir: "/no/such"}); err == nil {
			t.Error("no error for a directory that does not exist")
		}
		says(t, s, "pwd", "/etc\n")
	})
}

// What ends the shell ends the command with the right status, and the next one
// finds the state of the last that left it alive.
func TestShellEnds(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		for text, want := range map[string]int{
			"A=2; exit 7": 7, "exec sh -c 'exit 8'": 8, "kill -9 $$": 137, "set -e; false; echo no": 1,
			"exec sh -c 'kill -TERM $$'": 143,
		} {
			s := start(t, Options{Program: program, Dir: "/usr"})
			run(t, s, "export A=1; cd bin")
			out, _, r := run(t, s, "cd /; export A; echo seen; "+text)
			if out != "seen\n" || r.ExitCode != want || !r.Restarted || r.Dir != "/usr/bin" {
				t.Errorf("%q: %q %+v", text, out, r)
			}
			r = says(t, s, "pwd; echo $A", "/usr/bin\n1\n")
			if r.Restarted {
				t.Errorf("%q: told twice", text)
			}
		}
	})
}

// A failed exec ends bash where it reads a file, as every command is; ${x:?} ends the text.
func TestErrorsThatEnd(t *testing.T) {
	for text, want := range map[string]struct {
		status    int
		restarted bool
		a         string
	}{": ${nope:?}": {1, false, "2"}, "exec /no/such/program": {127, true, "1"}, "exec /etc/passwd": {126, true, "1"}} {
		s := start(t, Options{Dir: "/usr"})
		run(t, s, "A=1; cd bin")
		out, errs, r := run(t, s, "A=2; echo seen; "+text+"; echo never")
		if out != "seen\n" || errs == "" || r.ExitCode != want.status || r.Restarted != want.restarted || r.Dir != "/usr/bin" {
			t.Errorf("%q: %q %q %d %v %s", text, out, errs, r.ExitCode, r.Restarted, r.Dir)
		}
		says(t, s, "pwd; echo $A", "/usr/bin\n"+want.a+"\n")
	}
}

func TestKilledWhileIdle(t *testing.T) {
	s := start(t, Options{})
	run(t, s, "x=1; cd /usr")
	unix.Kill(s.PID(), unix.SIGKILL)
	if r := says(t, s, "echo $x; pwd", "1\n/usr\n"); !r.Restarted || r.ExitCode != 0 {
		t.Errorf("%+v", r)
	}
}

// Whatever a command does to its shell, the next one runs.
func TestProtocolSurvives(t *testing.T) {
	for _, text := range []string{
		"set -e", "set -u", "set -x", "set -f", "set -v", "set -n", "set -C", "set -a", "set -k", "set -T", "set -E",
		"set -t", "set -r", "set -euxo pipefail", "set -o posix", "POSIXLY_CORRECT=1", "IFS=x", "IFS=", "shopt -s extdebug",
		"shopt -s failglob nullglob", "shopt -s extdebug; trap false DEBUG", "trap 'echo $BASH_COMMAND' DEBUG",
		"trap 'exit 3' DEBUG", "trap 'exit 3' ERR", "trap 'echo bye' EXIT", "trap '' INT", "trap 'echo x' RETURN",
		"eval() { :; }", "builtin() { :; }", "command() { :; }", "read() { :; }", "cd() { :; }", "printf() { :; }",
		"declare() { :; }", "unset() { :; }", "return() { :; }", ".() { :; }", "source() { :; }", "umask() { :; }", "pwd() { :; }",
		"alias eval=false builtin=false declare=false printf=false unset=false export=false case=false",
		"enable -n printf", "enable -n builtin", "exec >/dev/null", "exec 2>&-", "exec <&-", "exec 0<&- 1>&- 2>&-",
		"exec 10>/dev/null 11>/dev/null 12>/dev/null", "exec 3</etc/passwd", "readonly __deployx_s=9", "readonly __deployx_d=1",
		"readonly PWD OLDPWD", "readonly PS1 PROMPT_COMMAND=false", "readonly TMOUT=1000", "unset PATH HOME IFS PWD OLDPWD",
		"PROMPT_COMMAND='exit 9'", "PS1='$(exit 9)'", "TMOUT=1", "IGNOREEOF=99", "set -o ignoreeof", "BASH_ENV=/etc/passwd",
		"break 99", "continue 99", "return 3", "while :; do break 99; done", "shift 99", "set -- a b c", "ulimit -n 16",
		"cat <&10", "read x <&10", "echo forged 0 >&10", "umask 777", "cd /proc/self",
		"exec 9<&0", "BASH_XTRACEFD=1", "LC_ALL=C", "LINENO=99", "shopt -s compat31", "set -b", "history -c", "disown -a",
	} {
		s := start(t, Options{})
		_, _, first := run(t, s, text)
		out, _, r := run(t, s, "echo ok")
		if out != "ok\n" {
			t.Errorf("%q: then echo ok prints %q: %+v", text, out, r)
		}
		if strings.Contains(string(first.Context), "SIGKILL") || first.Restarted || r.Restarted {
			t.Logf("restarted by %q", text)
		}
	}
}

// No output can be taken for the shell's answer, and the answer is in no output.
func TestForgery(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program})
		text := "for fd in 0 3 10 11 12 13 200; do (eval \"printf '000000000000000000000000 0' >&$fd\"); done 2>/dev/null; (exit 9)"
		_, _, r := run(t, s, text)
		if r.ExitCode != 9 {
			t.Errorf("%+v", r)
		}
		says(t, s, "echo next", "next\n")
		says(t, s, "ls /proc/self/fd | wc -l", "4\n") // 0, 1, 2 and ls's own: a command inherits nothing
	})
}
