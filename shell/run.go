package shell

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stream tells a command's two outputs apart.
type Stream int

// The streams. A command on a terminal has only Stdout.
const (
	Stdout Stream = iota + 1
	Stderr
)

func (s Stream) String() string { return [...]string{"", "stdout", "stderr"}[s] }

// Command is one command and where its input and output go.
//
// A pipe, character device, file at its start (Stdin) or file at its end (Stdout,
// Stderr) is opened by the shell itself; other files, and every Reader and Writer, are
// copied through a pipe. Equal Stdout and Stderr share one stream.
type Command struct {
	Text    string        // anything but NUL
	Dir     string        // cd there first, for good; "" stays
	Env     []string      // "K=V", exported for this command only
	Stdin   io.Reader     // nil is an end of file at once
	Stdout  io.Writer     // nil is discarded
	Stderr  io.Writer     // nil is discarded
	TTY     *TTY          // non-nil: run on a terminal; Stdin, Stdout and Stderr are unused
	Timeout time.Duration // 0 is none
	// Ended is called when the text has ended, unless something that the command started
	// still runs or the shell has ended: nothing of the command's will change a file any
	// more, and the shell's state is still to be captured. It may be called again, and must
	// not block.
	Ended func()
	// Late takes what jobs print after the command ended, until they close the
	// stream or the shell is closed. It is called from one goroutine a stream and
	// must not keep p. nil discards.
	Late func(stream Stream, p []byte)
	// Orphan takes over, while the shell is closed, the owner's end of a stream that
	// jobs still hold: Late is not called for it any more, and nothing of it is lost.
	// f is Orphan's to close; until then the jobs can print. nil closes it at once.
	Orphan func(stream Stream, f *os.File)
}

// Process is a process that outlives its command.
type Process struct {
	PID  int
	Name string // as in /proc/PID/comm
}

// Result tells how a command ended.
type Result struct {
	ExitCode    int    // 128+n for signal n, 124 after Timeout, 130 after an interrupt, 2 for a syntax error
	Signal      string // "SIGKILL" when a signal ended it, else ""
	TimedOut    bool
	Interrupted bool
	Restarted   bool      // the shell ended with this command, or before it and no result said so: a new one, with the state of Context, serves the next
	Dir         string    // the shell's directory after it
	Context     Context   // after it; if the shell ended, after the last command that left it alive
	Survivors   []Process // what it started and still runs
	Held        bool      // jobs keep its output open: Late takes what they print
	Started     time.Time
	Duration    time.Duration
}

// Exit codes of commands that were ended from outside, as timeout(1) and shells have them.
const (
	exitTimeout   = 124
	exitInterrupt = 128 + int(unix.SIGINT)
)

// Run runs one command and returns when its foreground ended and what it wrote
// was delivered. A cancelled ctx is an Interrupt. The error tells why the command
// could not be run at all; whatever a command does itself is in the Result.
// If the shell is away (see Leave) it enters first.
func (s *Shell) Run(ctx context.Context, c Command) (Result, error) {
	if strings.ContainsRune(c.Text, 0) {
		return Result{}, ErrNUL
	}
	if err := checkEnv(c.Env); err != nil {
		return Result{}, err
	}
	if err := s.lock(ctx); err != nil {
		return Result{}, err
	}
	defer s.unlock()
	restarted, err := s.ready(ctx)
	if err != nil {
		return Result{}, err
	}
	if c.Dir != "" {
		if err := s.chdir(ctx, c.Dir); err != nil {
			return Result{}, err
		}
	} else if err := s.mayEnter(ctx); err != nil {
		return Result{}, err
	}
	res, err := s.run(ctx, c)
	res.Restarted = res.Restarted || restarted
	if p := s.current(); err == nil && res.Restarted && p != nil && p.dead() {
		p.told = true
	}
	return res, err
}

// ready starts a new process where the last one ended, and tells whether no result
// has said so yet.
func (s *Shell) ready(ctx context.Context) (restarted bool, err error) {
	p := s.current()
	if p != nil && !p.dead() {
		return false, nil
	}
	if p != nil {
		p.release()
	}
	if _, err := s.spawn(ctx, s.Context()); err != nil {
		return true, err
	}
	return p == nil || !p.told, nil
}

func checkEnv(env []string) error {
	for _, kv := range env {
		key, value, ok := strings.Cut(kv, "=")
		bad := func(r rune) bool {
			return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}
		if !ok || key == "" || strings.ContainsFunc(key, bad) || key[0] <= '9' || strings.ContainsRune(value, 0) {
			return fmt.Errorf("environment entry %q is not NAME=value", kv)
		}
	}
	return nil
}

// run is Run on a live shell whose turn is held. If that dies before the command
// began, and not of an interrupt, a new one takes it.
func (s *Shell) run(ctx context.Context, c Command) (Result, error) {
	st, err := parseContext(s.Context())
	if err != nil {
		return Result{}, err
	}
	streams, err := s.open(c)
	if err != nil {
		return Result{}, err
	}
	res := Result{Started: time.Now()}
	p, status, err := s.attempt(ctx, st, c, streams.redirect, &res)
	if errors.Is(err, errIdle) && !res.TimedOut && !res.Interrupted {
		p.release()
		if _, err = s.ready(ctx); err == nil {
			res = Result{Started: res.Started, Restarted: true}
			p, status, err = s.attempt(ctx, st, c, streams.redirect, &res)
		}
	}
	if err != nil && !errors.Is(err, errEnded) && !errors.Is(err, errStuck) {
		return Result{}, errors.Join(err, streams.abort())
	}
	s.settle(p, status, err, &res)
	s.group.untag(p.pid)
	res.Held = streams.finish(s, c, s.o.Grace.Drain)
	res.Survivors = s.group.survivors(p.pid) // late, so that they have their own names
	res.Duration = time.Since(res.Started)
	return res, nil
}

// attempt hands the command to the current process and waits for its end.
func (s *Shell) attempt(ctx context.Context, st *state, c Command, redirect string, res *Result) (*process, int, error) {
	select {
	case <-s.cancel: // meant for the command before
	default:
	}
	p, nonce := s.current(), newNonce()
	s.group.tag(p.pid)
	s.setRunning(true)
	defer s.setRunning(false)
	if err := s.submit(p, s.command(st, c, redirect, nonce)); err != nil {
		return p, 0, err
	}
	status, err := s.watch(ctx, p, nonce, c, res)
	return p, status, err
}

func (s *Shell) setRunning(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = on
}

func (s *Shell) isAway() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

// settle fills the result in and takes the new state, or the old one if the shell ended.
func (s *Shell) settle(p *process, status int, err error, res *Result) {
	res.ExitCode = status
	if errors.Is(err, errStuck) {
		p.kill()
		res.ExitCode = 128 + int(unix.SIGKILL)
	}
	if err == nil {
		if st, err := s.captured(strconv.Itoa(status)); err == nil {
			s.adopt(st)
			s.setAway(s.o.Away)
		} else {
			p.kill() // a shell whose state cannot be told is not one to go on with
			res.Restarted = true
		}
	} else {
		res.Restarted = true
		if errors.Is(err, errEnded) {
			res.ExitCode = exitCode(p.state)
		}
	}
	res.Context = s.Context()
	res.Dir = res.Context.Dir()
	if n := syscall.Signal(res.ExitCode - 128); n > 0 && n < 65 {
		res.Signal = unix.SignalName(n)
	}
	switch {
	case res.TimedOut:
		res.ExitCode = exitTimeout
	case res.Interrupted:
		res.ExitCode = exitInterrupt
	}
}

func (s *Shell) adopt(st *state) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.context, s.away = st.encode(), false
}

func exitCode(st *os.ProcessState) int {
	if st == nil {
		return 1
	}
	if w, ok := st.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return st.ExitCode()
}

func newNonce() string {
	var b [12]byte
	rand.Read(b[:]) // never fails: crypto/rand crashes the program instead
	return hex.EncodeToString(b[:])
}
