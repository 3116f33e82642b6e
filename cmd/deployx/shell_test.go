package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

// person types at a terminal on which deployx shell runs, and reads the screen.
type person struct {
	t    *testing.T
	tty  *os.File
	cmd  *exec.Cmd
	tree string
	env  []string

	mu   sync.Mutex
	seen strings.Builder // since it was looked at last
	over chan struct{}
}

func sit(t *testing.T, args ...string) *person {
	t.Helper()
	testns.Need(t)
	testns.LeftBehind(t)
	dir := t.TempDir()
	p := &person{t: t, tree: filepath.Join(dir, "srv", "app"), env: append(os.Environ(), "DEPLOYX_STATE="+filepath.Join(dir, "state"), "TERM=xterm", "LANG=C.UTF-8")}
	if err := os.MkdirAll(p.tree, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountBelow(t, dir) })
	p.start(args...)
	return p
}

func (p *person) start(args ...string) {
	p.t.Helper()
	p.begin("deployx", append([]string{"shell", "--tree", p.tree}, args...)...)
	p.sees(`\$ $`)
}

// begin starts a program at the terminal.
func (p *person) begin(name string, args ...string) {
	p.t.Helper()
	p.cmd = exec.Command(name, args...)
	p.cmd.Env = p.env
	tty, err := pty.StartWithSize(p.cmd, &pty.Winsize{Rows: 40, Cols: 200})
	if err != nil {
		p.t.Fatal(err)
	}
	p.tty, p.over = tty, make(chan struct{})
	go p.read(tty, p.over)
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.over
		_ = tty.Close()
	})
}

func (p *person) read(tty *os.File, over chan struct{}) {
	defer close(over)
	buf := make([]byte, 4096)
	for {
		n, err := tty.Read(buf)
		p.mu.Lock()
		p.seen.Write(buf[:n])
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// escapes are what moves the cursor and colours; a carriage return goes with
// its newline.
var escapes = regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r`)

// sees waits until what was shown since it looked last matches, and returns it.
func (p *person) sees(pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	text := ""
	ok := eventually(func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		text = escapes.ReplaceAllString(p.seen.String(), "")
		if re.MatchString(text) {
			p.seen.Reset()
			return true
		}
		return false
	})
	if !ok {
		p.t.Fatalf("%q was never shown, but:\n%s", pattern, text)
	}
	return text
}

func (p *person) types(text string) {
	p.t.Helper()
	if _, err := p.tty.WriteString(text); err != nil {
		p.t.Fatal(err)
	}
}

// does types a line and waits for the next prompt.
func (p *person) does(line, pattern string) string {
	p.t.Helper()
	p.types(line + "\r")
	return p.sees("(?s)" + pattern + `.*\$ $`)
}

func (p *person) ends(status int) {
	p.t.Helper()
	<-p.over
	if err := p.cmd.Wait(); p.cmd.ProcessState.ExitCode() != status {
		p.t.Errorf("ended with %v, want %d", err, status)
	}
}

func (p *person) file(name string) string {
	b, err := os.ReadFile(filepath.Join(p.tree, name))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

const (
	ctrlC, ctrlD, ctrlR = "\x03", "\x04", "\x12"
	tabKey, upKey       = "\t", "\x1b[A"
)

func TestShell(t *testing.T) {
	p := sit(t)
	p.does("echo one > one", `\+1 ~0 -0  :undo takes it back\napp @[0-9a-f-]{13} `)
	p.does("mkdir sub && cd sub", `app/sub @`)
	p.does("cd /tmp", `app:/tmp @`)
	p.does("cd ~- && A='x y'", `app/sub @`)
	p.does(`echo "<$A>"`, `\n<x y>\n`)
	p.does("false", `\[1\] `)
	p.does("echo x > made; (exit 3)", `\+1 ~0 -0  exit 3; .*\[3\] `)
	p.does("# a comment", `\[3\] `)
	p.does("", `\[3\] `)
	p.types(ctrlD)
	p.ends(0)
}

func TestShellUndo(t *testing.T) {
	p := sit(t)
	p.does("echo one > one", `\+1`)
	p.does("echo two >> one; A=1", `~1`)
	p.does(":log", `(?s)echo two.*echo one`)
	p.does(":diff", `A one`)
	p.does(":undo", `rolled back .*echo two.*1 undone`)
	if got := p.file("one"); got != "one\n" {
		t.Errorf("after :undo: %q", got)
	}
	p.does(`echo "<$A>"`, `<>`)
	p.does(":undo 2", `rolled back.*rolled back .*echo one`)
	p.does(":redo", `brought back.*brought back`)
	p.does(":redo", `there is no rollback to take back`)
	if got := p.file("one"); got != "one\n" {
		t.Errorf("after :redo: %q", got)
	}
	p.does(":undo 9", `applied commands: \d, fewer than 9`)
	p.does(":undo x", `:undo takes a number of commands, not "x"`)
	p.does(":undo --dry-run", `would roll back`)
	p.does(":nope", `there is no :nope; :help tells what there is`)
	p.does(":help", `:undo \[N\]`)
	p.does(":status", `driver +overlay`)
	p.does(": > colon", `\+1`) // the shell's own
	p.types(":quit\r")
	p.ends(0)
}

// A job that keeps the terminal lives on after :quit, and prints to its command's output.
func TestShellLateOutput(t *testing.T) {
	p := sit(t)
	top := filepath.Dir(filepath.Dir(p.tree))
	p.does("(cd ..; until test -e go; do sleep 0.05; done; echo late; echo x >alive) &", `still running`)
	p.types(":quit\r")
	p.ends(0)
	if err := os.WriteFile(filepath.Join(top, "srv", "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if !eventually(func() bool { _, err := os.Stat(filepath.Join(top, "srv", "alive")); return err == nil }) {
		t.Error("the job is gone")
	}
	if left := processesOf(top); len(left) > 0 {
		t.Errorf("left running: %v", left)
	}
	outputs, err := filepath.Glob(filepath.Join(top, "state", "trees", "*", "output", "*"))
	if err != nil || len(outputs) != 1 {
		t.Fatalf("outputs %v, %v", outputs, err)
	}
	if b, err := os.ReadFile(outputs[0]); err != nil || !strings.Contains(string(b), "late\r\n") {
		t.Errorf("%q, %v", b, err)
	}
}

func TestShellInterrupt(t *testing.T) {
	p := sit(t)
	p.types("echo never" + ctrlC)
	p.sees(`\^C\n.*\$ $`)
	p.does("echo fine", `\nfine\n`)

	p.types("sleep 1071; echo never > never\r")
	// Not before: bash itself loses a ^C while it forks.
	if !eventually(func() bool { return exec.Command("pgrep", "-f", "^sleep 1071$").Run() == nil }) {
		t.Fatal("the command does not run")
	}
	p.types(ctrlC)
	p.sees(`\[130\] \$ $`)
	if got := p.file("never"); !strings.Contains(got, "no such file") {
		t.Errorf("what followed was run: %q", got)
	}
	p.types("while :; do : >loops; done\r")
	p.waitsFor("loops")
	p.types(ctrlC)
	p.sees(`\[130\] \$ $`)

	p.types("if true" + "\r")
	p.sees(`> $`)
	p.types(ctrlC)
	p.sees(`\$ $`)
	p.does("A=kept; echo $A", `\nkept\n`)
	p.types(ctrlD)
	p.ends(0)
}

func (p *person) waitsFor(name string) {
	p.t.Helper()
	if !eventually(func() bool { _, err := os.Lstat(filepath.Join(p.tree, name)); return err == nil }) {
		p.t.Fatalf("%s was never made", name)
	}
}

func TestShellMultiline(t *testing.T) {
	p := sit(t)
	for _, c := range []struct{ lines, want string }{
		{"echo 'a\nb'", "a\nb"},
		{"cat <<X\nhere\nX", "here"},
		{"echo one \\\ntwo", "one two"},
		{"for i in 1 2; do\necho $i\ndone", "1\n2"},
		{"echo $(\necho in)", "in"},
		{"f() {\necho f\n}; f", "f"},
		{"true &&\necho and", "and"},
	} {
		lines := strings.Split(c.lines, "\n")
		for i, l := range lines {
			p.types(l + "\r")
			if i < len(lines)-1 {
				p.sees(`> $`)
			}
		}
		p.sees(`(?s)\n` + regexp.QuoteMeta(c.want) + `\n.*\$ $`)
	}
	p.does("echo )", `syntax error near`)
	p.types(ctrlD)
	p.ends(0)
}

func TestShellTerminal(t *testing.T) {
	p := sit(t)
	p.does("tty; stty size", `/dev/pts/\d+\n40 200\n`)
	if err := pty.Setsize(p.tty, &pty.Winsize{Rows: 30, Cols: 120}); err != nil {
		t.Fatal(err)
	}
	p.does("stty size", `30 120\n`)
	// What is typed while a command runs is the command's.
	p.types("read a; echo \"<$a>\"\r")
	p.sees(`\$a>"\n`)
	p.types("typed\r")
	p.sees(`(?s)<typed>.*\$ $`)
	// A program that draws: it gets single keys and its size, and follows a resize.
	p.types("trap 'stty size' WINCH; stty -icanon -echo; echo ready; dd bs=1 count=1 2>/dev/null | od -c; stty sane\r")
	p.sees(`ready\n`)
	if err := pty.Setsize(p.tty, &pty.Winsize{Rows: 25, Cols: 90}); err != nil {
		t.Fatal(err)
	}
	p.types("q")
	p.sees(`(?s)0000000   q\n.*\$ $`)
	p.types(ctrlD)
	p.ends(0)
}

// What a command leaves unread is the next one's: whole lines, the beginning of one, and
// what was typed before the command had its terminal.
func TestShellTypeAhead(t *testing.T) {
	p := sit(t)
	p.types("touch there; until test -e go; do sleep 0.01; done; read a; echo \"<$a>\" >own\r")
	p.waitsFor("there")
	p.types("its own\recho one > one\recho two\b\b\bnine > ahead; echo ha")
	p.sees(`echo ha$`)
	if err := os.WriteFile(filepath.Join(p.tree, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.waitsFor("one")
	p.sees(`(?s)one > one.*\$ echo nine > ahead; echo ha$`)
	p.types("lf\r")
	p.sees(`(?s)\nhalf\n.*\$ $`)
	for name, want := range map[string]string{"own": "<its own>\n", "one": "one\n", "ahead": "nine\n"} {
		if got := p.file(name); got != want {
			t.Errorf("%s: %q", name, got)
		}
	}
	p.types(ctrlD)
	p.ends(0)
}

// The same for a command on the terminal of another shell.
func TestRunTypeAhead(t *testing.T) {
	p := sit(t)
	p.types(ctrlD)
	p.ends(0)
	p.begin("bash", "-c", `deployx run --tree "$0" --tty -- 'touch there; until test -e go; do sleep 0.01; done'; read -r a; echo "<$a>"`, p.tree)
	p.waitsFor("there")
	p.types("for the next\r")
	p.sees(`for the next\n`)
	if err := os.WriteFile(filepath.Join(p.tree, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p.sees(`<for the next>\n`)
	p.ends(0)
}

func TestShellComplete(t *testing.T) {
	p := sit(t)
	p.does("mkdir -p sub 'with space' && echo x > sub/alpha && echo y > sub/beta && echo z > sub/bett && echo s > 'with space/it'\\''s'", `\+`)
	p.types("cat su" + tabKey)
	p.sees(`cat sub/`)
	p.types("al" + tabKey)
	p.sees(`cat sub/alpha `)
	p.types("\r")
	p.sees(`(?s)\nx\n.*\$ $`)
	p.does("cd sub", `app/sub`)
	p.types("cat b" + tabKey)
	p.sees(`cat bet`)
	p.types(tabKey + tabKey)
	p.sees(`(?s)beta\s+bett`)
	p.types("a\r")
	p.sees(`(?s)\ny\n.*\$ $`)
	p.types("cat ../wi" + tabKey)
	p.sees(`with\\ space/`)
	p.types(tabKey)
	p.sees(`it\\'s `)
	p.types("\r")
	p.sees(`(?s)\ns\n.*\$ $`)
	p.types("cat '../with space/" + tabKey)
	p.sees(`it'\\''s' `)
	p.types("\r")
	p.sees(`(?s)\ns\n.*\$ $`)
	p.types(":un" + tabKey + "\r")
	p.sees(`(?s):undo.*1 undone.*\$ $`)
	p.types("basena" + tabKey)
	p.sees(`basename `)
	p.types(ctrlC + ctrlD)
	p.ends(0)
}

func TestShellHistory(t *testing.T) {
	p := sit(t)
	p.does("echo first-line", `first-line\n`)
	p.does(" echo secret", `secret\n`)
	p.types(upKey + "\r")
	p.sees(`(?s)\nfirst-line\n.*\$ $`)
	p.types(ctrlD)
	p.ends(0)

	p.start()
	p.types(upKey)
	p.sees(`echo first-line`)
	p.types(ctrlC)
	p.sees(`\$ $`)
	p.types(ctrlR + "first")
	p.sees(`echo first-line`)
	p.types("\r")
	p.sees(`(?s)\nfirst-line\n.*\$ $`)
	p.types(ctrlD)
	p.ends(0)
}

func TestShellEnds(t *testing.T) {
	p := sit(t)
	p.does("A=1; exit 4", `the shell ended; the next command gets a new one.*\[4\] `)
	p.does("kill -9 $$", `SIGKILL.*\[137\] `)
	p.types("exit 7\r")
	p.ends(7)

	// Ended from outside, with a command running: nothing of it is left.
	p.start()
	p.types("echo x > ready; sleep 1000\r")
	p.waitsFor("ready")
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	p.ends(143)
}

func TestShellShares(t *testing.T) {
	p := sit(t)
	p.does("A=1", ``)
	out, err := p.other("run", "--tree", p.tree, "--", "echo $A; A=2; cd /tmp")
	if err != nil || !strings.HasPrefix(out, "1\n") {
		t.Fatalf("another deployx: %v\n%s", err, out)
	}
	p.does("echo now $A in $PWD", `\nnow 2 in /tmp\n`)
	p.types(ctrlD)
	p.ends(0)
}

// other runs another deployx meanwhile.
func (p *person) other(args ...string) (string, error) {
	c := exec.Command("deployx", args...)
	c.Env = p.env
	out, err := c.CombinedOutput()
	return string(out), err
}

func TestUnfinished(t *testing.T) {
	for text, want := range map[string]bool{
		"echo": false, "": false, ":undo": false, "echo )": false, "# it's": false, `# c \`: false, `a \\`: false,
		"echo 'a": true, `echo "a`: true, "cat <<X\na": true, "cat <<X\na\nX": false, `a \`: true, "if x; then": true,
		"a |": true, "a &&": true, "{": true, "echo $(": true, "a=(": true, "case x in": true, "echo !(a)": false, "f() {\n:\n}": false,
	} {
		if got := unfinished(text); got != want {
			t.Errorf("unfinished(%q) = %v", text, got)
		}
	}
}
