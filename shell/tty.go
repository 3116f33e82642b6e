package shell

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
)

// TTY is the terminal that a command runs on. It is a new one for each command,
// of the shell's session while the command runs, so that /dev/tty and ^C work.
// There is no job control on it: ^Z is a character like others.
type TTY struct {
	In     io.Reader   // what is typed; nil is nothing
	Out    io.Writer   // what the terminal shows; nil is discarded
	Size   Size        // at the start; zero is 24×80
	Resize <-chan Size // later sizes; nil is none
	// Unread takes, before Run returns, what was typed and the command left unread, as the
	// terminal's line editing left it and without ^D; not called if that is nothing, or lost:
	// what a Read that cannot be ended still brings, and all of it where the shell has
	// another user (Options.User), who could put text there that nobody typed (TIOCSTI).
	Unread func(p []byte)
}

// Size is that of a terminal window, in characters.
type Size struct{ Rows, Cols uint16 }

// terminal is the owner's side of a TTY.
type terminal struct {
	master *os.File // a second descriptor: see leave
	slave  *os.File
	done   chan struct{} // closed by over
	wait   sync.WaitGroup
	once   sync.Once
}

func (st *streams) openTTY(s *Shell, c Command) error {
	t, shown, typed, err := openTerminal(s.account, c.TTY.Size)
	if err != nil {
		return fmt.Errorf("open terminal: %w", err)
	}
	st.tty = t
	st.redirect = fmt.Sprintf(" 0<>%s >&0 2>&0", quote(t.slave.Name()))
	st.pumps = append(st.pumps, startPump(Stdout, shown, c.TTY.Out))
	t.wait.Go(func() { t.follow(c.TTY.Resize) })
	if c.TTY.In == nil {
		return typed.Close()
	}
	st.inputs = append(st.inputs, (&feed{w: typed}).start(c.TTY.In, endOfTyping, t.awaitShell))
	return nil
}

// openTerminal makes a terminal, and two more descriptors of the owner's side.
func openTerminal(a *account, size Size) (t *terminal, shown, typed *os.File, err error) {
	master, slave, err := pty.Open()
	if err != nil {
		return nil, nil, nil, err
	}
	defer master.Close()
	t = &terminal{slave: slave, done: make(chan struct{})}
	for _, f := range []**os.File{&t.master, &shown, &typed} {
		if err == nil {
			*f, err = dup(master)
		}
	}
	if err == nil {
		err = t.prepare(a, size)
	}
	if err != nil {
		shown.Close() // of nil too: Close tells so
		typed.Close()
		t.close()
	}
	return t, shown, typed, err
}

// endOfTyping is VEOF, what ^D types.
const endOfTyping = "\x04"

// awaitShell waits until the shell took the terminal over, or the command's end:
// a ^C that is typed before would meet nobody and be lost.
func (t *terminal) awaitShell() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for pgrp := 0; pgrp == 0; {
		select {
		case <-t.done:
			return
		case <-tick.C:
		}
		err := control(t.master, func(fd int) (err error) {
			pgrp, err = unix.IoctlGetInt(fd, unix.TIOCGPGRP)
			return err
		})
		if err != nil {
			return
		}
	}
}

func (t *terminal) prepare(a *account, size Size) error {
	if size == (Size{}) {
		size = Size{24, 80}
	}
	if err := t.resize(size); err != nil {
		return fmt.Errorf("set terminal size: %w", err)
	}
	if a != nil {
		if err := t.slave.Chown(int(a.uid), -1); err != nil {
			return err
		}
	}
	return control(t.slave, func(fd int) error {
		mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return fmt.Errorf("tcgets: %w", err)
		}
		mode.Cc[unix.VSUSP] = 0 // _POSIX_VDISABLE: nobody could continue a stopped job
		return unix.IoctlSetTermios(fd, unix.TCSETS, mode)
	})
}

func (t *terminal) resize(size Size) error {
	return control(t.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

func (t *terminal) follow(sizes <-chan Size) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			t.resize(size) // the next size may do better
		case <-t.done:
			return
		}
	}
}

// maxUnread is more than the kernel keeps for a terminal that nobody reads.
const maxUnread = 64 << 10

// unread takes what was typed from the terminal. Without ICANON, which decides when a
// read gets it, that is also a line that has no end yet.
func (t *terminal) unread() (text []byte) {
	control(t.slave, func(fd int) error { // an error leaves nothing to be had
		mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
		if err != nil {
			return err
		}
		raw := *mode
		raw.Lflag &^= unix.ICANON
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 0, 0 // what there is, at once
		if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
			return err
		}
		for buf := make([]byte, 4096); len(text) < maxUnread; {
			n, err := unix.Read(fd, buf)
			if n <= 0 && err != unix.EINTR {
				break
			}
			text = append(text, buf[:max(n, 0)]...)
		}
		return unix.IoctlSetTermios(fd, unix.TCSETS, mode) // a job may still use it
	})
	return bytes.ReplaceAll(text, []byte{0}, nil) // n_tty keeps a NUL for VEOF
}

// leave takes the terminal from the shell's session. Otherwise the next command,
// even one without a terminal, could open /dev/tty and wait there for ever, and
// the hang-up at the end would kill the shell. Only root can steal a terminal;
// without that it stays open, and the shell's, until Close.
func (t *terminal) leave(s *Shell) {
	stolen := !s.o.force.noSteal && t.steal(s) == nil
	if !stolen {
		if f, err := dup(t.master); err == nil {
			s.mu.Lock()
			s.parked = append(s.parked, f)
			s.mu.Unlock()
		}
	}
	t.close()
}

// steal makes a short-lived session the terminal's owner: TIOCSCTTY with argument 1
// (ioctl_tty(2)), which is what Setctty does. When that session ends, only its own
// process group is told.
func (t *terminal) steal(s *Shell) error {
	args := append(s.dialect.argv(s.program)[:1], "-c", ":")
	if args[0] == "busybox" {
		args = []string{"busybox", "true"}
	}
	c := &exec.Cmd{Path: s.program, Args: args, Env: []string{}, Dir: "/", Stdin: t.slave}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	return c.Run()
}

// over ends the resizing, and the wait for the shell to come.
func (t *terminal) over() {
	t.once.Do(func() { close(t.done) })
	t.wait.Wait()
}

// close gives the owner's side up; pump and feed have their own descriptors.
func (t *terminal) close() {
	t.over()
	t.slave.Close()
	t.master.Close() // of nil too
}

// dup makes another descriptor of a terminal's side.
func dup(f *os.File) (*os.File, error) {
	n := -1
	err := control(f, func(fd int) (err error) {
		if err = unix.SetNonblock(fd, true); err == nil { // or a Read could not be ended
			n, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dup %s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(n), f.Name()), nil
}

// control calls f with the descriptor, whose mode stays as it is.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
