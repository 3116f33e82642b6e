package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"deployx/internal/crash"
	"deployx/shell"
	"deployx/snapshot"
)

// Command is a command to run in the tree's shell.
type Command struct {
	Text         string
	ID           string // the caller's name for it, kept in the record
	BatchID      string
	CommandIndex int
	Metadata     json.RawMessage
	NoSnapshot   bool
	Dir          string // "" is where the shell is
	Env          []string
	Shell        string // "" is the session's; another runs this one command and keeps nothing of its context
	Timeout      time.Duration

	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            *shell.TTY
	Late           func(shell.Stream, []byte)

	// Started is called when the snapshot stands and the command is about to
	// run. On an error it does not run: it is recorded as one that was not.
	Started func(snapshot.Snapshot) error
	// Done is called when the command's record is durable and the layer for what
	// comes next is in place: what the caller writes then is not the command's.
	Done func(Result)
}

// Result is what became of a command.
type Result struct {
	Snapshot  snapshot.Snapshot
	Dir       string // after
	Restarted bool   // the shell ended; the next command gets a new one
	Survivors []shell.Process
	Tail      []byte // the end of its output, both streams as they came
	Stale     []snapshot.Holder
	// Uncovered is what is mounted below the tree, and what the command unmounted
	// there: its undo neither knows what it changed in there, nor mounts or unmounts.
	Uncovered []snapshot.Mount
}

// Run takes a snapshot and runs c. A command that fails is not an error: its
// exit status is in the result. An error means that it did not run, or that
// what it did could not be recorded; the record then says so.
func (s *Session) Run(ctx context.Context, c Command) (r Result, err error) {
	if strings.ContainsRune(c.Text, 0) {
		return r, &snapshot.Error{Code: snapshot.CodeBadRequest, Msg: "the command holds a NUL byte, which no shell can take", Hint: "remove it"}
	}
	s.startShell(ctx)
	err = s.exclusively(ctx, func() error {
		r, err = s.run(ctx, c)
		return err
	})
	return r, err
}

func (s *Session) run(ctx context.Context, c Command) (Result, error) {
	if err := s.preflight(); err != nil {
		return Result{}, err
	}
	if err := s.reserve(); err != nil {
		return Result{}, err
	}
	early := s.watchKept() // before what has changed is copied, so that nothing falls between
	point, err := s.point(ctx)
	if err != nil {
		early()
		return Result{}, fmt.Errorf("take snapshot: %w", err)
	}
	defer s.endWatch()
	if err := s.room(ctx); err != nil {
		return Result{}, err
	}
	if err := s.ensureShell(ctx); err != nil {
		return Result{}, err
	}
	point.Command, point.CommandID, point.Metadata = c.Text, c.ID, c.Metadata
	point.BatchID, point.CommandIndex, point.NoSnapshot = c.BatchID, c.CommandIndex, c.NoSnapshot
	point.Dir = existing(s.sh.Context().Dir())
	if c.Dir != "" {
		point.Dir = c.Dir
	}
	point.Started, point.Fast = time.Now(), s.o.Fast
	if err := s.rec.Begin(point, s.ordered(point)); err != nil {
		return Result{}, fmt.Errorf("note command: %w", err)
	}
	crash.Point("session.begun")
	if c.Started != nil {
		if err := c.Started(point); err != nil {
			return Result{}, s.notRun(ctx, point, err)
		}
	}
	return s.execute(ctx, c, point)
}

// ordered tells whether what the command does cannot last without its note: it
// gets a new layer, on a filesystem that keeps the order of changes.
func (s *Session) ordered(p snapshot.Snapshot) bool {
	o, ok := s.drv.(snapshot.Orderer)
	return ok && !p.NoSnapshot && len(p.PinnedBy) == 0 && !s.owned(s.rec.Head()) && o.Ordered()
}

// notRun records a command that was begun and could not be run, and says why.
func (s *Session) notRun(ctx context.Context, point snapshot.Snapshot, why error) error {
	point.ExitCode, point.Unfinished = -1, true
	_, err := s.finish(context.WithoutCancel(ctx), point, "")
	return errors.Join(&snapshot.Error{Code: snapshot.CodeFailedToStart, Msg: "the command could not be run", Err: why}, err)
}

// execute runs the command and records what became of it.
func (s *Session) execute(ctx context.Context, c Command, point snapshot.Snapshot) (Result, error) {
	tail, late := newTail(tailBytes), s.newLate(point.ID, c.Late)
	below := s.uncovered()
	ended, prepared := s.prepareNext(ctx)
	watched := s.watch(point)
	res, err := s.sh.Run(ctx, shell.Command{
		Text: c.script(), Dir: c.Dir, Env: append([]string{"DEPLOYX_SNAPSHOT=" + string(point.ID)}, c.Env...),
		Stdin: c.Stdin, Stdout: tail.tee(c.Stdout), Stderr: tail.tee(c.Stderr), TTY: tail.teeTTY(c.TTY),
		Timeout: c.Timeout, Ended: ended, Late: late.write, Orphan: s.adopt(late),
	})
	counted := prepared()
	watched()
	if err != nil {
		return Result{}, s.notRun(ctx, point, err)
	}
	crash.Point("session.ran")
	ctx = context.WithoutCancel(ctx) // what was done must be recorded
	if err := s.sh.Leave(ctx); err != nil {
		s.dropShell()
	}
	point.Duration, point.ExitCode, point.Signal = res.Duration, res.ExitCode, res.Signal
	point.TimedOut, point.Interrupted = res.TimedOut, res.Interrupted
	point.Truncated = tail.truncated()
	var hash string
	err = s.sparing(func() (err error) {
		hash, err = s.keep(point.ID, res, tail.bytes())
		return err
	})
	if err != nil {
		return Result{}, err
	}
	late.begin()
	s.lookedBehind()
	r := Result{Dir: res.Dir, Restarted: res.Restarted, Survivors: res.Survivors, Tail: tail.bytes(), Stale: s.found.Stale}
	r.Uncovered = changed(below, s.uncovered())
	r.Snapshot, err = s.finishThen(ctx, point, hash, counted, func(done snapshot.Snapshot) {
		if r.Snapshot = done; c.Done != nil {
			c.Done(r)
		}
	})
	return r, err
}

// prepareNext makes the layer for what comes after the command while it runs,
// where the driver can, and when ended is called counts what the command changed. Wait
// returns the count, if there is one. A failure is left to the count and the Show that
// follow.
func (s *Session) prepareNext(ctx context.Context) (ended func(), wait func() *tally) {
	p, ok := s.drv.(snapshot.Preparer)
	h := s.rec.Head()
	v, err := s.rec.View(h)
	below, e := s.rec.Below(h)
	if !ok || err != nil || e != nil || kept(h) {
		return nil, func() *tally { return nil }
	}
	if s.next == "" {
		s.next = snapshot.NewLayerID()
	}
	next := snapshot.View{Layers: append(below.Layers, h.Open), Open: s.next}
	var counted *tally
	text, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		p.Prepare(ctx, next) //nolint:errcheck // see above
		if _, ok := <-text; !ok {
			return
		}
		if n, err := s.count(ctx, v); err == nil {
			counted = &n
		}
	}()
	ended = func() {
		select {
		case text <- struct{}{}:
		default:
		}
	}
	return ended, func() *tally {
		close(text)
		<-done
		return counted
	}
}

// nextLayer is the id of the layer that was prepared, or a new one.
func (s *Session) nextLayer() snapshot.LayerID {
	id := s.next
	s.next = ""
	if id == "" {
		id = snapshot.NewLayerID()
	}
	return id
}

// finish records a command that has ended, or been cut off, as the new head.
func (s *Session) finish(ctx context.Context, p snapshot.Snapshot, hash string) (snapshot.Snapshot, error) {
	if hash == "" {
		hash = s.rec.Head().Context
	}
	return s.finishThen(ctx, p, hash, nil, func(snapshot.Snapshot) {})
}

// finishThen is finish of a command of which the changes may have been counted, and
// calls done when it is to be reported.
func (s *Session) finishThen(ctx context.Context, p snapshot.Snapshot, hash string, counted *tally, done func(snapshot.Snapshot)) (snapshot.Snapshot, error) {
	h := s.rec.Head()
	v, err := s.rec.View(h)
	if err != nil {
		return p, err
	}
	dirty := p.SharedWith != ""
	if !dirty {
		var short bool
		if dirty, short, err = s.dirty(ctx, v); err != nil {
			return p, err
		}
		if short {
			s.o.Warn(notCopied)
		}
	}
	old := s.rec.Head()
	var others []snapshot.Snapshot // what they wrote while it ran
	if dirty {
		held, err := s.holders(ctx)
		if err != nil {
			return p, err
		}
		if p.SharedWith == "" && s.seals(h, held) {
			others, err = s.sealCommand(ctx, &h, &p, held)
		} else {
			p.Layer = old.Open
			var n tally
			n, err = s.countJoined(ctx, v, held, counted)
			n.into(&p)
		}
		if err != nil {
			return p, err
		}
		if len(held) == 0 && !p.NoSnapshot && !kept(h) {
			h.Open, h.Stands = s.nextLayer(), nil
		}
	}
	h.Snapshot, h.Context, h.Redo, h.Retire = p.ID, hash, nil, false
	for i := range others {
		others[i].Context, h.Snapshot = hash, others[i].ID
	}
	entries := append(others, p)
	flush := s.writeOut(ctx, entries, s.outputFile(p.ID), s.contextFile(hash))
	if err := s.publish(h, flush, entries...); err != nil {
		return p, fmt.Errorf("record command: %w", err)
	}
	crash.Point("session.recorded")
	report := func() {
		if s.doubt == nil {
			done(p)
		}
	}
	if h.Open == old.Open {
		s.confirm()
		report()
		if kept(h) {
			s.afterwards("merge layers", s.maintain())
		}
		return p, nil
	}
	held, err := s.pushFrom(ctx, old)
	report()
	switch {
	case err != nil:
	case len(held) == 0:
		err = s.maintain()
	case s.seals(s.rec.Head(), held): // pinned in the last moment
		_, err = s.capture(ctx, false)
	}
	s.afterwards("make the layer for the next command", err)
	return p, nil
}

const notCopied = "there was no room to copy what the command wrote: it can be rolled back, but not be done again by a redo; no command runs before it is rolled back or there is room"

// A tally is what an entry says of the changes in its layer.
type tally struct {
	snapshot.Counts
	split []string
}

func (n *tally) add(c snapshot.Change) {
	if n.Add(c); c.SplitLink && len(n.split) < snapshot.SplitLinksMost {
		n.split = append(n.split, c.Path)
	}
}

func (n *tally) into(e *snapshot.Snapshot) { e.Changes, e.SplitLinks = n.Counts, n.split }

// count counts what the view's open layer changed.
func (s *Session) count(ctx context.Context, v snapshot.View) (n tally, err error) {
	err = s.drv.Changes(ctx, v.Layers, []snapshot.LayerID{v.Open}, func(c snapshot.Change) error {
		n.add(c)
		return nil
	})
	return n, err
}

// countJoined is count, unless that has been done, after hard links that came apart
// have been put together where that can be. In a tree that somebody holds they are not:
// he may write to one.
func (s *Session) countJoined(ctx context.Context, v snapshot.View, held []snapshot.Holder, counted *tally) (n tally, err error) {
	if counted != nil {
		n = *counted
	} else {
		n, err = s.count(ctx, v)
	}
	j, ok := s.drv.(snapshot.Rejoiner)
	if err != nil || len(n.split) == 0 || len(held) > 0 || !ok {
		return n, err
	}
	var some bool
	err = s.sparing(func() (err error) {
		some, err = j.Rejoin(ctx, v)
		return err
	})
	s.afterwards("put hard links together again", err)
	if err == nil && !some {
		return n, nil
	}
	return s.count(ctx, v)
}

// keep writes what a command leaves beside its entry. The flush that comes
// with the entry makes it last. Late output is added to a file that is there only.
func (s *Session) keep(id snapshot.ID, res shell.Result, tail []byte) (hash string, err error) {
	if len(tail) > 0 || res.Held {
		if err := writeNew(s.outputFile(id), tail); err != nil {
			return "", err
		}
	}
	return s.saveContext(res.Context)
}

func writeNew(name string, b []byte) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o600)
}
