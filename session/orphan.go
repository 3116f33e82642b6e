package session

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"deployx/shell"
)

// An orphan is a stream that jobs hold when the shell is closed. A process of its own
// reads it on, as long as they hold it: with no reader they would die of SIGPIPE.
type orphan struct {
	file *os.File
	late *late
}

// adopt takes l's streams while the shell is closed, which is done with s.mu held.
func (s *Session) adopt(l *late) func(shell.Stream, *os.File) {
	if s.o.Reader == nil {
		return nil
	}
	return func(_ shell.Stream, f *os.File) { s.orphans = append(s.orphans, orphan{f, l}) }
}

// handOver starts the reader of the orphans, if there are any.
func (s *Session) handOver() (err error) {
	all := s.orphans
	s.orphans = nil
	defer func() {
		for _, o := range all {
			err = errors.Join(err, o.file.Close())
		}
	}()
	if len(all) == 0 {
		return nil
	}
	args := []string{detach}
	var files []*os.File
	for _, o := range all {
		args = append(args, o.late.name, strconv.Itoa(o.late.rest()))
		files = append(files, o.file)
	}
	c := reader(append(append([]string(nil), s.o.Reader...), args...), files)
	if err := c.Run(); err != nil {
		return fmt.Errorf("start the reader of late output: %w", err)
	}
	return nil
}

// detach is the reader's first argument where it is to start itself once more: so it
// is nobody's child here, and whoever closes a session need not wait for it.
const detach = "detach"

// firstFile is the descriptor of the first stream (os/exec, ExtraFiles).
const firstFile = 3

// reader is this program, which holds nothing of ours: not the tree, the lock, the
// terminal or the environment.
func reader(args []string, files []*os.File) *exec.Cmd {
	return &exec.Cmd{
		Path: "/proc/self/exe", Args: args, Env: []string{}, Dir: "/", ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
}

// ReadLate is what Options.Reader runs: it adds what comes from the descriptors from 3
// on to their kept outputs, within the bounds, and drops the rest. It returns when all
// have ended. The arguments are, for each, the name of the output and the bound in bytes.
func ReadLate(args []string) error {
	again := len(args) > 0 && args[0] == detach
	if again {
		args = args[1:]
	}
	files, lates, err := inherited(args)
	if err != nil {
		return err
	}
	if again {
		self := os.Args[:len(os.Args)-len(args)-1]
		return reader(append(append([]string(nil), self...), args...), files).Start()
	}
	var all sync.WaitGroup
	for i, f := range files {
		all.Go(func() { lates[i].follow(f) })
	}
	all.Wait()
	return nil
}

// inherited finds what the arguments tell of. Streams of one command share its bound.
func inherited(args []string) (files []*os.File, lates []*late, err error) {
	if len(args) == 0 || len(args)%2 != 0 {
		return nil, nil, errNotOurs
	}
	of := map[string]*late{}
	for i := 0; i < len(args); i += 2 {
		name, fd := args[i], firstFile+i/2
		left, err := strconv.Atoi(args[i+1])
		if err != nil || left < 0 || unix.SetNonblock(fd, true) != nil {
			return nil, nil, errNotOurs
		}
		if of[name] == nil {
			of[name] = &late{name: name, warn: func(string) {}, kept: true, left: left}
		}
		files, lates = append(files, os.NewFile(uintptr(fd), name)), append(lates, of[name])
	}
	return files, lates, nil
}

var errNotOurs = errors.New("only deployx itself calls this, for jobs that outlive it")

// follow reads f to its end. An error is one too: a terminal that nobody holds any
// more gives EIO.
func (l *late) follow(f *os.File) {
	defer f.Close()
	buf := make([]byte, tailBytes)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			l.write(shell.Stdout, buf[:n])
		}
		if err != nil {
			return
		}
	}
}

// rest is how much can still be added.
func (l *late) rest() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}
