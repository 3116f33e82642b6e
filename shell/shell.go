// Package shell runs commands in one persistent shell: what a command leaves
// behind in the shell itself (directory, variables, functions, aliases, options,
// umask) is there for the next one, and can be carried to another process.
//
// It is not for undoing what commands do to files, nor for keeping logs: it knows
// neither trees nor snapshots. Use os/exec where a command needs no shell state.
//
// docs/shell.md tells the protocol, the life cycle and what is not carried over.
package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Errors that callers tell apart. A missing shell is a *NotFoundError.
var (
	ErrClosed = errors.New("shell is closed")
	// ErrDialect: bash, and the others, cannot take each other's contexts.
	ErrDialect = errors.New("another kind of shell")
	ErrNUL     = errors.New("command holds a NUL byte, which no shell can take: remove it")
)

// Options say which shell to start and with what. The zero value is a fresh bash.
type Options struct {
	Program string   // "" is bash; a name Installed knows, or a path
	Env     []string // the whole environment, "K=V"; nil is CleanEnv(EnvOptions{User: User})
	Context Context  // what to restore; nil is a fresh shell
	Dir     string   // where to start when Context has no directory; "" is "/"
	User    string   // run as this user with its groups; "" is the caller
	Grace   Grace
	Away    bool // be away (see Leave) whenever no command runs, without a call for it

	force fallback
}

// Grace holds the waiting times of a cancel and of a command's end.
// Zero fields take the defaults given here; negative ones mean no wait.
type Grace struct {
	Interrupt time.Duration // between SIGINT and SIGTERM; 2 s
	Terminate time.Duration // between SIGTERM and SIGKILL; 3 s
	Drain     time.Duration // for output of jobs that outlive their command; 50 ms
}

func (g Grace) withDefaults() Grace {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
		*d = max(*d, 0)
	}
	set(&g.Interrupt, 2*time.Second)
	set(&g.Terminate, 3*time.Second)
	set(&g.Drain, 50*time.Millisecond)
	return g
}

// Shell is one persistent shell. Its methods may be called from any goroutine;
// commands run one at a time, in the order in which Run gets hold of the shell.
type Shell struct {
	program string
	dialect dialect
	o       Options
	account *account // nil: the caller's own
	wires   *wires
	group   *group

	turn   chan struct{} // holds one token: whoever has it may talk to the shell
	cancel chan struct{} // one token per Interrupt; drained when a command starts
	closed chan struct{} // closed by Close
	late   sync.WaitGroup

	watcher watcher // whoever has the turn may use it

	closeOnce sync.Once
	closeErr  error

	mu      sync.Mutex // guards the fields below
	proc    *process   // nil when the shell ended and no command came since
	context Context
	running bool
	away    bool // Leave was called and no Enter since
	parked  []*os.File
	lates   map[*pump]func(Stream, *os.File) // to what Orphan each goes
}

// Start starts the shell and waits until it has restored o.Context.
// On error nothing is left running. ctx bounds the start only.
func Start(ctx context.Context, o Options) (*Shell, error) {
	program, kind, err := find(o.Program)
	if err != nil {
		return nil, err
	}
	o.Grace = o.Grace.withDefaults()
	s := &Shell{
		program: program, dialect: kind, o: o,
		turn: make(chan struct{}, 1), cancel: make(chan struct{}, 1), closed: make(chan struct{}),
		lates: map[*pump]func(Stream, *os.File){},
	}
	if s.account, err = lookup(o.User); err != nil {
		return nil, err
	}
	if s.o.Env == nil {
		s.o.Env = CleanEnv(EnvOptions{User: o.User})
	}
	if s.wires, err = newWires(s.account); err != nil {
		return nil, fmt.Errorf("make shell's files: %w", err)
	}
	s.group = newGroup(o.force)
	s.turn <- struct{}{}
	if s.context, err = s.spawn(ctx, o.Context); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Context is the shell's state as of the last finished command, or as started.
func (s *Shell) Context() Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.context
}

// PID is the shell's process id, or 0 when it ended and no command came since.
func (s *Shell) PID() int {
	p := s.current()
	if p == nil || p.dead() {
		return 0
	}
	return p.pid
}

func (s *Shell) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.proc
}

// Close ends the shell and what it runs in the foreground, and waits for both.
// Jobs that outlived their commands live on; what they print from then on goes to
// whom Command.Orphan gave the stream, or else meets a closed pipe. Later calls
// return what the first did.
func (s *Shell) Close() error {
	s.closeOnce.Do(func() {
		close(s.closed)
		<-s.turn // a running command is being killed: see watch
		if p := s.current(); p != nil {
			p.end()
		}
		s.watcher.close()
		s.closeErr = errors.Join(s.endLate(), s.group.close(), s.wires.close())
	})
	return s.closeErr
}

// lock waits for the shell to be idle.
func (s *Shell) lock(ctx context.Context) error {
	select {
	case <-s.closed:
		return ErrClosed
	default:
	}
	select {
	case <-s.turn:
		return nil
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Shell) unlock() { s.turn <- struct{}{} }
