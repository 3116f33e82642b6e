// Package session joins one tree, its record, its driver and its one persistent
// shell: it runs commands, each with a snapshot just before it, and undoes
// them.
//
// It is not for several trees (an agent has a session for each) and knows
// neither the command line nor the wire.
package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"deployx/internal/durable"
	"deployx/shell"
	"deployx/snapshot"
)

// OnPinned says what to do when a process holds the tree, so that the layer
// with what it writes cannot be sealed.
type OnPinned string

// The policies.
const (
	Seal   OnPinned = "seal"   // what has changed is copied out of it: each command has its own rollback point
	Share  OnPinned = "share"  // the next command runs in the same layer: one rollback point
	Refuse OnPinned = "refuse" // no command, no rollback
	Stop   OnPinned = "stop"   // TERM, then KILL, the holders
)

// OnDrift says what a rollback does with changes that others made between
// commands.
type OnDrift string

// The policies.
const (
	DriftKeep   OnDrift = "keep"   // they stay, or where that cannot be the rollback is refused
	DriftRefuse OnDrift = "refuse" // name them and do nothing
	DriftDrop   OnDrift = "drop"   // they go with the commands (redo brings both back)
)

// Options configure a session. Tree, State and OpenDriver are needed.
type Options struct {
	State snapshot.State
	Tree  snapshot.Tree
	// OpenDriver makes the driver that the tree was recorded with.
	OpenDriver func(context.Context, snapshot.Tree) (snapshot.Driver, error)
	// Shell is the program, user, environment and graces; its Context and Dir
	// are the session's business.
	Shell    shell.Options
	OnPinned OnPinned // "" is Seal
	// Fast leaves out the flush of a command's layer before it is reported
	// complete: a power cut may then lose what it did.
	Fast bool
	// KeepLast and KeepBytes are bounds of Expire beside its age; see Retention.
	KeepLast      int
	KeepBytes     int64
	OnInterrupted OnInterrupted // "" is KeepInterrupted
	// Recovered is told what was put right, each time that something was.
	Recovered func(Recovery)
	// MinFree is what must be free for a command to run.
	MinFree MinFree
	// Wait bounds the wait for another deployx that holds the tree; 0 waits
	// as long as the context does.
	Wait time.Duration
	// Unasked is for upkeep that comes by itself: a tree that does not show what its
	// record says is refused, and left as it is, and no commit is gone on with.
	Unasked bool
	// Waiting is called once if the tree is held by another deployx.
	Waiting func(error)
	// Warn is told what a person should know and no result carries.
	Warn func(string)
	// Reader is the command line, argv[0] first, with which this program's own
	// binary calls ReadLate. nil: what jobs print when the session's shell is
	// closed meets a closed pipe.
	Reader []string
}

// Session serves one tree. Its methods may be called from any goroutine; those
// that change the tree take turns, with other processes too.
type Session struct {
	o   Options
	drv snapshot.Driver
	rec *snapshot.Record

	mu       sync.Mutex // held while the tree's lock is
	seq      uint64     // of the head that the shell's context belongs to
	undid    bool       // see settleCut
	showOnly bool       // see Restore, Close
	refused  bool       // see Options.Unasked
	// forgotten: there is nothing left to work on, see ForgetTree.
	forgotten bool
	reserved  bool  // see reserve
	doubt     error // the last move of the head is not confirmed (snapshot.IsUnconfirmed)
	sh        *shell.Shell
	starting  *starting        // see startShell
	standing  func()           // see lookBehind
	whole     map[string]bool  // contexts that were read or written: their files are right
	next      snapshot.LayerID // prepared while a command ran, not used yet
	upkeep    upkeep
	watched   *watched // who changes the tree, while a command runs in a pinned one
	writers   *writers // of the command that ran last, if the tree was pinned
	orphans   []orphan // from the shell that is being closed

	now   sync.Mutex // guards live
	live  *shell.Shell
	found Recovery
}

// Open opens the session of a known tree. It changes nothing: the first
// operation makes the tree agree with the record.
func Open(ctx context.Context, o Options) (*Session, error) {
	rec, err := snapshot.OpenRecord(filepath.Join(o.Tree.Store, "record"))
	if err != nil {
		return nil, err
	}
	drv, err := o.OpenDriver(ctx, o.Tree)
	if err != nil {
		return nil, err
	}
	if o.OnPinned == "" {
		o.OnPinned = Seal
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if m, ok := drv.(snapshot.Maintainer); ok {
		m.OnWait(o.Warn)
	}
	return &Session{o: o, drv: drv, rec: rec, showOnly: o.Unasked}, nil
}

// Tree is the tree that the session serves.
func (s *Session) Tree() snapshot.Tree { return s.o.Tree }

// Recovered tells what had to be put right so far.
func (s *Session) Recovered() Recovery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.found
}

// exclusively runs f with the tree's lock, after the record has been read again
// and the tree made to agree with it.
func (s *Session) exclusively(ctx context.Context, f func() error) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait := ctx
	if s.o.Wait > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, s.o.Wait)
		defer cancel()
	}
	l, err := s.lock(wait)
	if err != nil {
		return err
	}
	return s.under(ctx, l, f)
}

func (s *Session) lock(wait context.Context) (*snapshot.Lock, error) {
	l, err := snapshot.WaitLock(wait, filepath.Join(s.o.Tree.Store, "lock"), s.o.Waiting)
	if s.forgotten || errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = l.Unlock()
		}
		return nil, errors.Join(&snapshot.Error{
			Code: snapshot.CodeNotFound, Msg: fmt.Sprintf("the tree %q has been forgotten meanwhile", s.o.Tree.Path),
			Hint: "deployx run --tree DIR makes it known again",
		}, err)
	}
	return l, err
}

// under runs f under the lock and gives the lock back.
func (s *Session) under(ctx context.Context, l *snapshot.Lock, f func() error) (err error) {
	defer func() { err = errors.Join(err, l.Unlock()) }()
	if err := s.rec.Reload(); err != nil {
		return err
	}
	s.doubt = nil
	if err := s.converge(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := f(); err != nil {
		return err
	}
	return s.doubt
}

// converge makes the tree agree with the record: it ends a command that was
// cut off, and shows the view. It costs microseconds when there is nothing to
// do.
func (s *Session) converge(ctx context.Context) error {
	moved := s.rec.Head().Seq != s.seq
	if moved {
		s.dropShell() // another process has moved on; its context is the record's
		s.seq = s.rec.Head().Seq
	}
	shown, err := s.drv.Shown(ctx)
	if err != nil {
		return err
	}
	again := shown != s.rec.Head().Open
	if s.refused = s.o.Unasked && (again || s.rec.Head().Restoring != nil); s.refused {
		return &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("the tree %q does not show what its record says", s.o.Tree.Path),
			Hint: "deployx restore --tree DIR shows it, and any command does",
		}
	}
	switch {
	case again:
		err = s.reshow(ctx, shown)
	case moved && shown != "":
		err = s.showAgain(ctx)
	}
	if err != nil {
		return err
	}
	if err := s.restore(ctx, true); err != nil {
		return err
	}
	if err := s.settleCut(ctx, again); err != nil {
		return err
	}
	if err := s.dropReplaced(ctx); err != nil {
		s.o.Warn("what was written in the last moment before the tree was shown anew is not in view yet: " + err.Error())
	}
	if !s.showOnly {
		s.resumeCommit(ctx)
	}
	return nil
}

// move moves the head, durably; the shell's context goes with it.
func (s *Session) move(h snapshot.Head) error { return s.moveNow(h, nil) }

// commit moves the head to new entries, durably, with all that the driver holds.
func (s *Session) commit(ctx context.Context, h snapshot.Head, entries ...snapshot.Snapshot) error {
	var all snapshot.Flush
	if !s.o.Fast {
		all = func(...string) error { return s.drv.Sync(ctx) }
	}
	return s.moveNow(h, all, entries...)
}

// moveNow is publish and then confirm.
func (s *Session) moveNow(h snapshot.Head, flush snapshot.Flush, entries ...snapshot.Snapshot) error {
	err := s.publish(h, flush, entries...)
	if err == nil {
		s.confirm()
	}
	return err
}

// publish moves the head. What is missing until that lasts, confirm does, or show;
// where neither comes, the operation ends with errUnasked.
func (s *Session) publish(h snapshot.Head, flush snapshot.Flush, entries ...snapshot.Snapshot) error {
	err := s.sparing(func() error { return s.rec.Publish(h, flush, entries...) })
	if s.seq = s.rec.Head().Seq; err == nil {
		s.doubt = errUnasked
	}
	return err
}

var errUnasked = snapshot.Unconfirmed(errors.New("it has not been asked"))

// confirm makes the last move last. One that the disk does not confirm did take
// place: the tree follows, and the operation ends with that error.
func (s *Session) confirm() { s.doubt = s.rec.Confirm() }

// writeOut makes the layers of entries last, and files beside these, before the
// head moves there: by as little as the driver can.
func (s *Session) writeOut(ctx context.Context, entries []snapshot.Snapshot, beside ...string) snapshot.Flush {
	o, ok := s.drv.(snapshot.Orderer)
	switch {
	case s.o.Fast:
		return nil
	case !ok || !o.Ordered(), slices.ContainsFunc(entries, sealed):
		return func(...string) error { return s.drv.Sync(ctx) }
	}
	return func(staged ...string) error {
		files := append(staged, beside...)
		for _, e := range entries {
			if e.Layer == "" {
				continue
			}
			if done, err := o.WriteOut(ctx, e.Layer, files...); err != nil {
				return err
			} else if !done {
				return s.drv.Sync(ctx)
			}
			files = nil
		}
		return durable.WriteOut(files...)
	}
}

// sealed tells whether an entry is a copy. The tree shows the layer that it was copied
// from, which is to last like it.
func sealed(e snapshot.Snapshot) bool { return e.Mode == snapshot.ModeSealed && e.Layer != "" }

// show shows v and confirms the last move, side by side: a swap waits for no disk.
func (s *Session) show(ctx context.Context, v snapshot.View) (t snapshot.Transition, err error) {
	confirmed := make(chan error, 1)
	go func() { confirmed <- s.rec.Confirm() }()
	err = s.sparing(func() (err error) {
		t, err = s.drv.Show(ctx, v)
		return err
	})
	s.doubt = <-confirmed
	return t, err
}

// Close ends the shell. The tree goes on showing what it shows, but one with
// no layer becomes a plain directory again. Where another deployx is at work on
// the tree that is left to it: Close does not wait.
func (s *Session) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropShell()
	s.lookedBehind()
	if st := s.started(); st.sh != nil {
		s.closeShell(st.sh)
	}
	s.upkeep.end(upkeepGrace)
	if s.forgotten {
		return nil
	}
	s.showOnly = true // no commit is gone on with
	var err error
	if !s.refused {
		err = s.tidy(context.Background())
	}
	if e := s.drv.Close(); e != nil { // of work that nobody waited for, and that is begun again
		s.o.Warn("upkeep: " + e.Error())
	}
	return err
}

func (s *Session) tidy(ctx context.Context) error {
	once, stop := context.WithCancel(ctx)
	stop()
	l, err := s.lock(once)
	if snapshot.CodeOf(err) == snapshot.CodeTreeBusy {
		return nil
	}
	if err != nil {
		return err
	}
	return s.under(ctx, l, func() error { return errors.Join(s.settle(ctx), s.rec.SaveStack()) })
}

// settle hides a tree of which no entry has a layer, and to which nobody else has
// written. One that is held stays mounted, which status tells.
func (s *Session) settle(ctx context.Context) error {
	h := s.rec.Head()
	v, below, err := s.views(h)
	if err != nil || h.Open == "" || len(below.Layers) > 0 || s.owned(h) || h.Stands != nil && !kept(h) {
		return err
	}
	drifted := func() (drifted bool, err error) {
		err = s.sparing(func() (err error) {
			drifted, err = s.drifted(ctx, h, v)
			return err
		})
		return drifted, err
	}
	if some, err := drifted(); err != nil || some {
		return err
	}
	if err := s.drv.Hide(ctx); err != nil {
		if snapshot.CodeOf(err) == snapshot.CodeTreeBusy {
			return nil
		}
		return err
	}
	if some, err := drifted(); err != nil || some { // written in the last moment
		_, e := s.drv.Show(ctx, v)
		return errors.Join(err, e)
	}
	old := s.rec.Head()
	h.Open, h.Stands, h.Retire = "", nil, false
	if err := s.move(h); err != nil {
		return err
	}
	return errors.Join(s.drv.Discard(ctx, old.Open), s.forsake(ctx, old))
}

// owned tells whether the open layer belongs to a command already: it is
// shared, because it was pinned or because that command took no snapshot.
func (s *Session) owned(h snapshot.Head) bool {
	if h.Snapshot == "" {
		return false
	}
	top, err := s.rec.Snapshot(h.Snapshot)
	return err == nil && h.Open != "" && top.Layer == h.Open
}
