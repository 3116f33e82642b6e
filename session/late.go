package session

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/shell"
	"deployx/snapshot"
)

// late adds what jobs print after their command has ended to its kept output,
// tailBytes at most, and drops the rest. What comes before that output is written
// waits for it. An output that is gone, be it by gc, is not made anew.
type late struct {
	name string
	pass func(shell.Stream, []byte) // may be nil
	warn func(string)

	mu   sync.Mutex
	held []byte
	kept bool // the output is written
	left int
}

func (s *Session) newLate(id snapshot.ID, pass func(shell.Stream, []byte)) *late {
	return &late{name: s.outputFile(id), pass: pass, warn: s.o.Warn, left: tailBytes}
}

func (s *Session) outputFile(id snapshot.ID) string {
	return filepath.Join(s.o.Tree.Store, "output", string(id))
}

func (l *late) write(stream shell.Stream, p []byte) {
	if l.pass != nil {
		l.pass(stream, p)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p = p[:min(len(p), l.left)]
	l.left -= len(p)
	if l.held = append(l.held, p...); l.kept {
		l.flush()
	}
}

// begin is called when the output is written.
func (l *late) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = true
	l.flush()
}

func (l *late) flush() {
	if len(l.held) == 0 {
		return
	}
	f, err := os.OpenFile(l.name, os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err == nil {
		_, err = f.Write(l.held)
		err = errors.Join(err, f.Close())
	}
	if l.held = nil; err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.warn("keep late output: " + err.Error())
	}
}
