package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"deployx/internal/wire"
	"deployx/shell"
	"deployx/snapshot"
)

// terminalPrefix begins the command_id of what an interactive shell prints. A
// new one for each, for seq begins anew.
const terminalPrefix = "shell-"

// terminal is the interactive shell: a shell on a pseudo terminal, as over ssh.
// It stands in the user's home and takes no snapshots: what is done there to a
// tree is drift, as what any other person does on the host. So it neither holds
// a tree nor waits for one.
type terminal struct {
	name string
	tty  *os.File
	cmd  *exec.Cmd
	out  *stream
	done chan struct{} // closed when it has ended
	keys chan []byte
}

// maxKeys bounds the input that the shell has not read, in events.
const maxKeys = 256

func (a *Agent) startShell(r *request) (any, error) {
	name, warning := a.chooseShell(r.fields)
	if r.err != nil {
		return nil, r.err
	}
	if name == "" {
		name = a.o.Shell
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.terminal != nil {
		return map[string]any{"command_id": a.terminal.out.id, "shell": a.terminal.name, "message": "it runs already"}, nil
	}
	t, err := a.openTerminal(name)
	if err != nil {
		return nil, &snapshot.Error{Code: snapshot.CodeFailedToStart, Msg: "the shell could not be started", Err: err}
	}
	a.terminal = t
	a.wg.Go(func() { a.serveTerminal(t) })
	out := wire.Outcome{CommandID: t.out.id, Shell: name, Success: new(true), Message: warning}
	a.tell("shell_started", out)
	return map[string]any{"command_id": t.out.id, "shell": name, "warning": warning}, nil
}

func (a *Agent) openTerminal(name string) (*terminal, error) {
	cmd := exec.Command(name)
	if name == "busybox" {
		cmd.Args = append(cmd.Args, "sh")
	}
	cmd.Env = shell.CleanEnv(shell.EnvOptions{User: a.o.User, Term: "xterm-256color"})
	cred, home, err := credential(a.o.User)
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr, cmd.Dir = &syscall.SysProcAttr{Credential: cred}, "/"
	if fi, err := os.Stat(home); err == nil && fi.IsDir() {
		cmd.Dir = home
	}
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 24, Cols: 80})
	if err != nil {
		return nil, err
	}
	if tty, err = nonblocking(tty); err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	t := &terminal{name: name, tty: tty, cmd: cmd, done: make(chan struct{}), keys: make(chan []byte, maxKeys)}
	t.out = a.terminalStream()
	return t, nil
}

// nonblocking replaces f by a descriptor whose Close ends a Read, which the
// pty package's own does not: what a shell leaves behind may keep the terminal
// open for ever.
func nonblocking(f *os.File) (*os.File, error) {
	defer f.Close() //nolint:errcheck // the duplicate stays
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("dup terminal", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(os.NewSyscallError("set terminal nonblocking", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "terminal"), nil
}

func (a *Agent) terminalStream() *stream {
	s := &stream{
		link: a.link, agentID: a.id, id: terminalPrefix + uuid.NewString(), patience: a.o.Patience, chunkBytes: chunkBytes,
		wake: make(chan struct{}), spool: newSpool(a.dir, a.o.SpoolBytes),
	}
	s.ctx, s.stop = context.WithCancel(a.ctx)
	return s
}

// credential is that of a user, with its groups; nil for our own.
func credential(name string) (*syscall.Credential, string, error) {
	if name == "" {
		u, err := user.Current()
		if err != nil {
			return nil, "/", nil //nolint:nilerr // a user without an entry has no home
		}
		return nil, u.HomeDir, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, "", err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, "", err
	}
	c := &syscall.Credential{}
	for _, s := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, "", fmt.Errorf("ids of user %q: %w", name, err)
		}
		c.Groups = append(c.Groups, uint32(n))
	}
	c.Uid, c.Gid, c.Groups = c.Groups[0], c.Groups[1], c.Groups[2:]
	return c, u.HomeDir, nil
}

// serveTerminal passes input and output on until the shell ends.
func (a *Agent) serveTerminal(t *terminal) {
	var typing sync.WaitGroup
	typing.Go(t.typeKeys)
	// The read ends with EIO when the last process on the terminal has closed
	// it (tty_ioctl(4)).
	_, _ = io.Copy(t.out.writer("tty"), t.tty)
	err := t.cmd.Wait()
	close(t.done)
	_ = t.tty.Close()
	typing.Wait()
	t.out.end()
	flush, cancel := context.WithTimeout(a.ctx, a.o.Patience)
	_ = t.out.flush(flush)
	cancel()
	t.out.close()
	a.mu.Lock()
	a.terminal = nil
	a.mu.Unlock()
	message := "ended"
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		message = exit.String()
	}
	a.tell("shell_stopped", wire.Outcome{CommandID: t.out.id, Shell: t.name, Success: new(true), Message: message})
}

func (t *terminal) typeKeys() {
	for {
		select {
		case k := <-t.keys:
			if _, err := t.tty.Write(k); err != nil {
				return
			}
		case <-t.done:
			return
		}
	}
}

// press hands input to the shell; it never waits.
func (t *terminal) press(keys string) error {
	select {
	case t.keys <- []byte(keys):
		return nil
	default:
		return fail(codeBusyQueue, "the shell does not read its input", "interrupt what runs there")
	}
}

func (a *Agent) currentTerminal() *terminal {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.terminal
}

func (a *Agent) stopShell(*request) (any, error) {
	if a.currentTerminal() == nil {
		a.tell("shell_stopped", wire.Outcome{Success: new(true), Message: "no shell runs"})
		return map[string]any{"message": "no shell runs"}, nil
	}
	a.wg.Go(a.stopTerminal)
	return nil, nil
}

// stopTerminal ends the interactive shell: SIGHUP to its session, as when a
// terminal is closed, then SIGKILL.
func (a *Agent) stopTerminal() {
	t := a.currentTerminal()
	if t == nil {
		return
	}
	for _, sig := range []unix.Signal{unix.SIGHUP, unix.SIGKILL} {
		_ = unix.Kill(-t.cmd.Process.Pid, sig) // it may have ended
		select {
		case <-t.done:
			return
		case <-time.After(time.Second):
		}
	}
	_ = t.tty.Close() // something else on the terminal keeps it open
}

func (a *Agent) getShells(*request) (any, error) {
	t := a.currentTerminal()
	list := map[string]any{"shells": append([]string{}, a.o.Shells...), "default": a.o.Shell, "active": nil}
	if t != nil {
		list["active"] = t.name
	}
	a.tell("shells_list", list)
	return list, nil
}
