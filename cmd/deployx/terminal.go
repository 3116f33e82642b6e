package main

import (
	"encoding/binary"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"deployx/shell"
)

// terminal gives a command a terminal of its own. Where we are on one, what is
// typed goes there unchanged, its size follows ours, and what the command leaves unread
// comes back to ours.
func (a *app) terminal(e *events) (*shell.TTY, func(), error) {
	t := &shell.TTY{In: a.in, Out: a.out}
	if a.json {
		t.Out = e.stream("tty")
	}
	fd := int(a.in.Fd())
	if !term.IsTerminal(fd) {
		return t, func() {}, nil
	}
	t.Size = windowSize(fd)
	old, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, err
	}
	t.Unread = func(p []byte) { typeAgain(fd, p) }
	resize, winch, done := make(chan shell.Size), make(chan os.Signal, 1), make(chan struct{})
	t.Resize = resize
	signal.Notify(winch, unix.SIGWINCH)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		follow(fd, winch, resize, done)
	}()
	return t, func() {
		signal.Stop(winch)
		close(done)
		<-stopped
		term.Restore(fd, old) //nolint:errcheck // the terminal may be gone
	}, nil
}

func follow(fd int, winch <-chan os.Signal, resize chan<- shell.Size, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-winch:
		}
		select {
		case <-done:
			return
		case resize <- windowSize(fd):
		}
	}
}

// typeAgain puts text back into the terminal fd, which is in raw mode, before what was
// typed since. Where the kernel does not let us (Linux 6.2: CAP_SYS_ADMIN or
// dev.tty.legacy_tiocsti), or has no room (4 KiB), it is lost.
func typeAgain(fd int, text []byte) {
	for _, c := range append(text, waiting(fd)...) {
		if unix.IoctlSetPointerInt(fd, unix.TIOCSTI, int(binary.NativeEndian.Uint32([]byte{c, 0, 0, 0}))) != nil {
			return
		}
	}
}

// waiting reads what is in the terminal.
func waiting(fd int) (text []byte) {
	for buf := make([]byte, 4096); ; {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 0); n != 1 || err != nil || ready[0].Revents != unix.POLLIN {
			return text
		}
		n, err := unix.Read(fd, buf)
		if err != nil || n <= 0 {
			return text
		}
		text = append(text, buf[:n]...)
	}
}

func windowSize(fd int) shell.Size {
	w, h, err := term.GetSize(fd)
	if err != nil {
		return shell.Size{}
	}
	return shell.Size{Rows: uint16(h), Cols: uint16(w)}
}
