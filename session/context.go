package session

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"deployx/internal/durable"
	"deployx/shell"
	"deployx/snapshot"
)

// A starting is a shell on its way up, with the context that it gets.
type starting struct {
	context string
	done    chan struct{} // closed when sh and err are set
	sh      *shell.Shell
	err     error
}

// startShell begins to start the shell, if it does not run, with the context
// that the record had when it was read last. A bash takes as long to start as
// the tree takes to be looked at, and is away from it until a command comes.
func (s *Session) startShell(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sh != nil || s.starting != nil {
		return
	}
	st := &starting{context: s.rec.Head().Context, done: make(chan struct{})}
	s.starting = st
	go func() {
		defer close(st.done)
		st.sh, st.err = s.newShell(ctx, st.context)
	}()
}

// started hands over the shell that is on its way, if there is one.
func (s *Session) started() *starting {
	st := s.starting
	s.starting = nil
	if st == nil {
		return &starting{}
	}
	<-st.done
	return st
}

// ensureShell makes the shell run with the record's context.
func (s *Session) ensureShell(ctx context.Context) error {
	if s.sh != nil {
		return nil
	}
	want, st := s.rec.Head().Context, s.started()
	if st.sh != nil && st.context != want { // another process has moved on
		s.closeShell(st.sh)
		st.sh = nil
	}
	if st.sh == nil {
		if st.sh, st.err = s.newShell(ctx, want); st.err != nil {
			return st.err
		}
	}
	s.sh = st.sh
	s.setLive(s.sh)
	return nil
}

func (s *Session) newShell(ctx context.Context, hash string) (*shell.Shell, error) {
	c, err := s.loadContext(hash)
	if err != nil {
		return nil, err
	}
	o := s.o.Shell
	o.Context, o.Dir, o.Away = c, s.o.Tree.Path, true
	if o.Env == nil {
		o.Env = shell.CleanEnv(shell.EnvOptions{User: o.User})
	}
	o.Env = append(slices.Clone(o.Env), "DEPLOYX_TREE="+s.o.Tree.Path)
	sh, err := shell.Start(ctx, o)
	if err != nil {
		e := &snapshot.Error{Code: snapshot.CodeFailedToStart, Msg: "the shell could not be started", Err: err}
		if errors.Is(err, shell.ErrDialect) {
			e.Hint = "what the commands before left goes on in the shell that they had: leave --shell out; one command in another is dash -c 'COMMAND'"
		}
		return nil, e
	}
	return sh, nil
}

func (s *Session) dropShell() {
	if s.sh == nil {
		return
	}
	s.setLive(nil)
	s.closeShell(s.sh)
	s.sh = nil
}

func (s *Session) closeShell(sh *shell.Shell) {
	if err := sh.Close(); err != nil {
		s.o.Warn(fmt.Sprintf("close shell: %v", err))
	}
	if err := s.handOver(); err != nil {
		s.o.Warn(fmt.Sprintf("jobs that print now meet a closed pipe: %v", err))
	}
}

func (s *Session) setLive(sh *shell.Shell) {
	s.now.Lock()
	defer s.now.Unlock()
	s.live = sh
}

// Interrupt stops the command that runs now: SIGINT, then TERM, then KILL. It
// does not wait, and does nothing when no command runs.
func (s *Session) Interrupt() {
	s.now.Lock()
	sh := s.live
	s.now.Unlock()
	if sh != nil {
		sh.Interrupt()
	}
}

// Dir is the working directory that the shell's next command starts in: where the
// last one left it or, if that is gone, the nearest parent that exists.
func (s *Session) Dir() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.rec.Reload(); err != nil {
		return "", err
	}
	c, err := s.loadContext(s.rec.Head().Context)
	if err != nil {
		return "", err
	}
	dir := c.Dir()
	if dir == "" {
		dir = s.o.Tree.Path
	}
	return existing(dir), nil
}

func (s *Session) contextFile(hash string) string {
	return filepath.Join(s.o.Tree.Store, "contexts", hash)
}

// saveContext keeps a shell's context under the hash of its content. One that is there
// in part, for its disk had a power cut, is written anew; a full one leaves none so.
func (s *Session) saveContext(c shell.Context) (string, error) {
	if len(c) == 0 {
		return "", nil
	}
	sum := sha256.Sum256(c)
	hash := hex.EncodeToString(sum[:16])
	name := s.contextFile(hash)
	if s.whole[hash] {
		if _, err := os.Lstat(name); err == nil {
			return hash, nil
		}
	}
	if old, err := os.ReadFile(name); err != nil || !bytes.Equal(old, c) {
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return "", err
		}
		if err := durable.Replace(name, c); err != nil {
			return hash, err
		}
	}
	s.isWhole(hash)
	return hash, nil
}

// isWhole notes that a context's file need not be read to be known right.
func (s *Session) isWhole(hash string) {
	const most = 1000
	if s.whole == nil || len(s.whole) == most {
		s.whole = map[string]bool{}
	}
	s.whole[hash] = true
}

// loadContext reads a context; one that is lost, or was cut off by a power
// failure before its command was reported, is named and not guessed at.
func (s *Session) loadContext(hash string) (shell.Context, error) {
	if hash == "" {
		return nil, nil
	}
	c, err := os.ReadFile(s.contextFile(hash))
	if errors.Is(err, fs.ErrNotExist) {
		s.o.Warn(fmt.Sprintf("the shell's context %s is lost; the shell starts anew", hash))
		return nil, nil
	}
	sum := sha256.Sum256(c)
	if err == nil && hex.EncodeToString(sum[:16]) != hash {
		s.o.Warn(fmt.Sprintf("the shell's context %s is damaged; the shell starts anew", hash))
		return nil, nil
	}
	if err == nil {
		s.isWhole(hash)
	}
	return c, err
}
