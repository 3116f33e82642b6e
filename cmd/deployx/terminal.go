package main

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"deployx/shell"
)

// terminal gives a command a terminal of its own. Where we are on one, what is
// typed goes there unchanged, and its size follows ours.
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

func windowSize(fd int) shell.Size {
	w, h, err := term.GetSize(fd)
	if err != nil {
		return shell.Size{}
	}
	return shell.Size{Rows: uint16(h), Cols: uint16(w)}
}
