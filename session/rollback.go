package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// Target says what to roll back: exactly one field is set.
type Target struct {
	ID    snapshot.ID // this snapshot and all above
	Batch string      // a batch's first command and all above
	Last  int         // this many newest commands
	All   bool        // everything
}

// Undo is what a rollback or a redo did, or with DryRun would do.
type Undo struct {
	Dropped  []snapshot.Snapshot // newest first; for a redo, what came back
	Dir      string              // where the shell is now
	Context  string
	DryRun   bool
	Duration time.Duration // until the tree shows it
	Verified bool          // the tree was seen to show the target
	Plain    bool          // no layer is left: a plain directory again
	Late     bool          // somebody wrote in the last moment; redo shows it
	// Kept is what others had changed and is still so, as it is told of each of
	// their layers; KeptAs the entry that holds it now.
	Kept   []snapshot.Change
	KeptAs *snapshot.Snapshot
	// Stale are processes that go on with what was undone.
	Stale []Stale
	// InPlace: the tree was pinned, so that files were replaced in it, and
	// Holders go on with the ones that they have open.
	InPlace bool
	Holders []snapshot.Holder
	// Uncovered is what is mounted below the tree: it is as it was.
	Uncovered []snapshot.Mount
}

// RollbackOptions refine a rollback.
type RollbackOptions struct {
	DryRun bool
	Drift  OnDrift
}

// Rollback puts the tree back to what it was just before the target, all or
// nothing: on error it shows what it showed.
func (s *Session) Rollback(ctx context.Context, t Target, o RollbackOptions) (u Undo, err error) {
	err = s.exclusively(ctx, func() error {
		held, err := s.catchUp(ctx, true)
		if err != nil {
			return err
		}
		u, err = s.rollback(ctx, t, o)
		u.Holders = held
		return err
	})
	return u, err
}

func (s *Session) rollback(ctx context.Context, t Target, o RollbackOptions) (Undo, error) {
	start := time.Now()
	dropped, err := s.find(t)
	if err != nil {
		return Undo{}, err
	}
	h := s.rec.Head()
	drift, err := s.openDrift(ctx, h)
	if err != nil {
		return Undo{}, err
	}
	switch o.Drift {
	case "", DriftKeep:
		return s.rollbackKeeping(ctx, dropped, drift, t, o, start)
	case DriftRefuse:
		if err := s.refuseDrift(ctx, dropped, drift); err != nil {
			return Undo{DryRun: o.DryRun, Dropped: dropped}, err
		}
	}
	oldest := dropped[len(dropped)-1]
	u := Undo{Dropped: dropped, Dir: oldest.Dir, Context: oldest.Context, DryRun: o.DryRun}
	if drift != nil {
		u.Dropped = append([]snapshot.Snapshot{*drift}, dropped...)
	}
	if o.DryRun {
		return u, nil
	}
	to := s.rec.Head() // the floor stays
	to.Snapshot, to.Context = oldest.Parent, oldest.Context
	to.Redo = append(h.Redo, snapshot.Frame{Snapshot: h.Snapshot, Context: h.Context})
	var entries []snapshot.Snapshot
	if drift != nil {
		entries = append(entries, *drift)
		to.Redo[len(to.Redo)-1].Snapshot = drift.ID
	}
	err = s.goTo(ctx, h, to, &u, start, entries...)
	return u, err
}

// find lists what t drops, newest first.
func (s *Session) find(t Target) ([]snapshot.Snapshot, error) {
	switch {
	case t.ID != "":
		return s.rec.Above(t.ID)
	case t.Batch != "":
		id, err := s.rec.FirstOfBatch(t.Batch)
		if err != nil {
			return nil, err
		}
		return s.rec.Above(id)
	}
	left := t.Last
	list, err := s.rec.AboveOldest(func(e snapshot.Snapshot) (want, done bool) {
		if want = t.All || e.Kind == snapshot.KindCommand; want {
			left--
		}
		return want, !t.All && left == 0
	})
	switch {
	case err != nil:
		return nil, err
	case list == nil:
		return nil, &snapshot.Error{
			Code: snapshot.CodeUnknownSnapshot, Msg: "there is nothing to roll back: no command is applied",
			Hint: "deployx log --all lists what was rolled back already",
		}
	case !t.All && left > 0:
		return nil, &snapshot.Error{
			Code: snapshot.CodeUnknownSnapshot, Msg: fmt.Sprintf("applied commands: %d, fewer than %d", t.Last-left, t.Last),
			Hint: "deployx log lists them; --all rolls all of them back",
		}
	}
	return list, nil
}

// openDrift makes the entry for what others wrote since the last command; nil
// if they did not, or if what they wrote cannot be told from a command's.
func (s *Session) openDrift(ctx context.Context, h snapshot.Head) (*snapshot.Snapshot, error) {
	if h.Open == "" || s.owned(h) || kept(h) {
		return nil, nil
	}
	v, err := s.rec.View(h)
	if err != nil {
		return nil, err
	}
	dirty, _, err := s.dirty(ctx, v)
	if err != nil || !dirty {
		return nil, err
	}
	d, err := s.drift(ctx, h, v)
	return &d, err
}

// drift is the entry for what others wrote to the open layer of v.
func (s *Session) drift(ctx context.Context, h snapshot.Head, v snapshot.View) (d snapshot.Snapshot, err error) {
	d = snapshot.Snapshot{ID: snapshot.NewID(), Parent: h.Snapshot, Kind: snapshot.KindDrift, Layer: h.Open, Context: h.Context, Started: time.Now()}
	n, err := s.count(ctx, v)
	n.into(&d)
	return d, err
}

// refuseDrift names what others changed that a rollback would throw away.
func (s *Session) refuseDrift(ctx context.Context, dropped []snapshot.Snapshot, open *snapshot.Snapshot) error {
	p := keeping(dropped, "")
	if open != nil {
		p.others = append([]snapshot.Snapshot{*open}, p.others...)
	}
	changes, err := s.changesOf(ctx, p.others)
	if err != nil || len(changes) == 0 {
		return err
	}
	paths := named(changes)
	return conflict("others changed the tree between the commands; these changes would be lost:", paths,
		"roll back with --drift drop to drop them too (redo brings them back), or copy them away first"+s.shownBy(ctx, p.others, paths))
}

// goTo moves the record from one head to another and the tree with it.
func (s *Session) goTo(ctx context.Context, from, to snapshot.Head, u *Undo, start time.Time, entries ...snapshot.Snapshot) error {
	ctx = context.WithoutCancel(ctx) // from here on it is all or nothing
	v, changed, err := s.target(from, &to, entries)
	if err != nil {
		return err
	}
	if m, ok := s.drv.(snapshot.Mounter); ok && changed {
		if err := m.Fits(ctx, v.Layers); err != nil {
			return err
		}
	}
	defer func() { u.Uncovered = s.uncovered() }()
	s.dropShell()
	to.Retire = false
	var before sight
	if changed {
		inPlace, err := s.inPlace(ctx, from)
		if inPlace && err == nil {
			return s.goInPlace(ctx, from, to, u, start, entries...)
		}
		if err != nil {
			return err
		}
		before = s.look()
	}
	if err := s.publish(to, s.writeOut(ctx, entries), entries...); err != nil {
		return err
	}
	crash.Point("session.rolled")
	var t snapshot.Transition
	if changed {
		if t, err = s.show(ctx, v); snapshot.IsUnderway(err) {
			return err // it goes on, and the record has moved for it
		} else if err != nil {
			return errors.Join(err, s.move(from))
		}
	} else {
		s.confirm()
	}
	u.Duration = time.Since(start)
	if changed && s.doubt == nil {
		u.Late, err = s.abandon(ctx, from, entries) // while what it stood on is there
		s.afterwards("give up the layer that was left", err)
		s.afterwards("give up what the view stood on", s.forsake(ctx, from))
		u.Late = u.Late || t.Late
	}
	u.Stale = before.stale(func() ([]snapshot.Change, error) { return s.changesOf(ctx, u.Dropped) })
	shown, err := s.drv.Shown(ctx)
	u.Verified = err == nil && shown == s.rec.Head().Open
	s.afterwards("look at the tree", err)
	s.afterwards("unmount", s.settle(ctx))
	u.Plain = s.rec.Head().Open == ""
	return nil
}

// afterwards tells of a step that failed when what was asked had been done: it
// is tried again another time, and no reason to say that nothing happened.
func (s *Session) afterwards(step string, err error) {
	if err != nil {
		s.o.Warn(fmt.Sprintf("done, but could not %s: %v", step, err))
	}
}

// target chooses the open layer of the head to go to: the same one if the
// layers are the same, a new one otherwise. entries are new and not yet in the
// record; the head's top may be among them.
func (s *Session) target(from snapshot.Head, to *snapshot.Head, entries []snapshot.Snapshot) (v snapshot.View, changed bool, err error) {
	old, err := s.rec.Below(from)
	if err != nil {
		return v, false, err
	}
	top, above := to.Snapshot, []snapshot.LayerID(nil)
	for _, e := range entries {
		if e.ID == top {
			top, above = e.Parent, []snapshot.LayerID{e.Layer}
		}
	}
	layers, err := s.rec.Layers(top)
	if err != nil {
		return v, false, err
	}
	layers = append(layers, above...)
	same := !holds(entries, from.Open) && !s.owned(from) && len(layers) == len(old.Layers)
	for i := 0; same && i < len(layers); i++ {
		same = layers[i] == old.Layers[i]
	}
	to.Open, to.Stands = from.Open, from.Stands
	if !same {
		to.Open, to.Stands = snapshot.NewLayerID(), nil
	}
	return snapshot.View{Layers: layers, Open: to.Open}, !same, nil
}

// holds tells whether a layer is one of the entries'.
func holds(entries []snapshot.Snapshot, l snapshot.LayerID) bool {
	return slices.ContainsFunc(entries, func(e snapshot.Snapshot) bool { return e.Layer == l })
}

// abandon gives up the open layer of a head that was left, unless it has an
// entry. It was empty; if somebody wrote to it in the last moment it gets an
// entry now, which a rollback's redo leads to.
func (s *Session) abandon(ctx context.Context, from snapshot.Head, entries []snapshot.Snapshot) (late bool, err error) {
	if from.Open == "" || s.owned(from) || holds(entries, from.Open) {
		return false, nil
	}
	v, err := s.rec.View(from)
	if err != nil {
		return false, err
	}
	if late, _, err = s.dirty(ctx, v); err != nil {
		return false, err
	}
	if !late {
		return false, s.drv.Discard(ctx, from.Open)
	}
	d, err := s.drift(ctx, from, v)
	if err != nil {
		return late, err
	}
	h := s.rec.Head()
	if n := len(h.Redo); n > 0 && h.Redo[n-1].Snapshot == from.Snapshot {
		h.Redo[n-1].Snapshot = d.ID
	}
	return late, s.commit(ctx, h, d)
}

// inPlace tells whether a rollback has to be done in place, for a process
// holds the tree. Under other policies than seal that is refused: a swap under it
// would take its own writes along and leave it on the dropped layer.
func (s *Session) inPlace(ctx context.Context, from snapshot.Head) (bool, error) {
	if kept(from) {
		return true, nil
	}
	h, err := s.drv.Holders(ctx)
	if e, ok := s.drv.(snapshot.Elsewhere); ok && err == nil && len(h) == 0 && s.o.OnPinned == Seal {
		h, err = e.Elsewhere(ctx) // a swap would refuse
	}
	if err != nil || len(h) == 0 {
		return false, err
	}
	if _, ok := s.drv.(snapshot.Restorer); ok && s.seals(from, h) {
		return true, nil
	}
	return false, s.refuse(ctx, h)
}

// refusePinned refuses while a process holds the tree.
func (s *Session) refusePinned(ctx context.Context) error {
	h, err := s.drv.Holders(ctx)
	if err != nil || len(h) == 0 {
		return err
	}
	return s.refuse(ctx, h)
}

func (s *Session) refuse(ctx context.Context, h []snapshot.Holder) error {
	if s.o.OnPinned == Stop {
		return s.stopHolders(ctx, h)
	}
	return busy(s.o.Tree.Path, h)
}

// Redo undoes the newest n rollbacks. It is possible until something new has
// been run.
func (s *Session) Redo(ctx context.Context, n int, o RollbackOptions) (u Undo, err error) {
	err = s.exclusively(ctx, func() error {
		held, err := s.catchUp(ctx, true)
		if err != nil {
			return err
		}
		u, err = s.redo(ctx, n, o)
		u.Holders = held
		return err
	})
	return u, err
}

func (s *Session) redo(ctx context.Context, n int, o RollbackOptions) (Undo, error) {
	start := time.Now()
	h := s.rec.Head()
	if n < 1 || n > len(h.Redo) {
		msg := fmt.Sprintf("rollbacks that can be taken back: %d, fewer than %d", len(h.Redo), n)
		if len(h.Redo) == 0 {
			msg = "there is no rollback to take back"
		}
		return Undo{}, &snapshot.Error{
			Code: snapshot.CodeBadRequest, Msg: msg,
			Hint: "a rollback can be taken back until something new has been run",
		}
	}
	return s.redoKeeping(ctx, n, o, start)
}
