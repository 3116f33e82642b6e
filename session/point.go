package session

import (
	"context"
	"errors"
	"io/fs"

	"deployx/snapshot"
)

// point prepares the open layer for a command: what others changed since the
// last one is sealed as drift, and an open layer that belongs to a command
// already is left behind, unless it is pinned.
func (s *Session) point(ctx context.Context) (snapshot.Snapshot, error) {
	p := snapshot.Snapshot{ID: snapshot.NewID(), Kind: snapshot.KindCommand}
	h := s.rec.Head()
	if h.Open == "" {
		if err := s.uncover(ctx); err != nil {
			return p, err
		}
		h = s.rec.Head()
	}
	if err := s.seal(ctx, &p, h); err != nil {
		return p, err
	}
	h = s.rec.Head()
	p.Parent, p.Context = h.Snapshot, h.Context
	return p, s.refuseDoubt()
}

// refuseDoubt refuses a command whose snapshot the disk does not confirm. The error
// is not the doubt itself, which would say that the command took place.
func (s *Session) refuseDoubt() error {
	if s.doubt == nil {
		return nil
	}
	e := &snapshot.Error{
		Code: snapshot.CodeInternal, Msg: "the disk does not confirm the snapshot, so the command did not run",
		Hint: "look after the disk (dmesg)",
	}
	var cause *fs.PathError
	if errors.As(s.doubt, &cause) {
		e.Err = cause
	}
	return e
}

// uncover shows a plain directory for the first time: an empty open layer.
func (s *Session) uncover(ctx context.Context) error {
	h := s.rec.Head()
	h.Open = snapshot.NewLayerID()
	v, err := s.rec.View(h)
	if err != nil {
		return err
	}
	if err := s.publish(h, nil); err != nil {
		return err
	}
	t, err := s.drv.Show(ctx, v)
	if err != nil {
		h.Open = ""
		return errors.Join(err, s.move(h))
	}
	s.lookBehind(t.Stale)
	s.confirm()
	return nil
}

// lookBehind looks, beside the command that comes, for those who hold the
// directory that has just been covered. lookedBehind waits for the outcome.
func (s *Session) lookBehind(find func() []snapshot.Holder) {
	if find == nil {
		return
	}
	found := make(chan []snapshot.Holder, 1)
	go func() { found <- find() }()
	s.standing = func() { s.found.Stale = <-found }
}

func (s *Session) lookedBehind() {
	if s.standing != nil {
		s.standing()
		s.standing = nil
	}
}

// seal puts a fresh layer under a command if the open one is taken or dirty.
// Under the policy share a pinned one is used again, and p says with whom; under
// seal it is kept by a copy.
func (s *Session) seal(ctx context.Context, p *snapshot.Snapshot, h snapshot.Head) error {
	if h.Stands != nil {
		holders, err := s.catchUp(ctx, false)
		if p.ID = snapshot.NewID(); err != nil || len(holders) > 0 {
			p.PinnedBy, p.Mode = holders, snapshot.ModeSealed
			return err
		}
		h = s.rec.Head()
	}
	v, err := s.rec.View(h)
	if err != nil {
		return err
	}
	owned := s.owned(h)
	dirty := owned
	if !owned {
		if dirty, err = s.drv.Dirty(ctx, v); err != nil {
			return err
		}
	}
	holders, err := s.pinned(ctx)
	if err != nil || !dirty && len(holders) == 0 {
		return err
	}
	if s.seals(h, holders) {
		return s.sealPinned(ctx, p, holders)
	}
	if !dirty { // held, but nothing to split from: the layer is this command's
		p.PinnedBy = holders
		return nil
	}
	var entries []snapshot.Snapshot
	if !owned {
		drift, err := s.drift(ctx, h, v)
		if err != nil {
			return err
		}
		entries = append(entries, drift)
		p.ID = snapshot.NewID() // sorts after the drift
		h.Snapshot, h.Redo = drift.ID, nil
	}
	old := s.rec.Head()
	if len(holders) == 0 {
		h.Open, h.Stands = snapshot.NewLayerID(), nil
	}
	if err := s.publish(h, s.writeOut(ctx, entries), entries...); err != nil {
		return err
	}
	if len(holders) > 0 {
		s.confirm()
	} else {
		if holders, err = s.pushFrom(ctx, old); err != nil {
			return err
		}
	}
	if s.seals(s.rec.Head(), holders) { // in the last moment
		return s.sealPinned(ctx, p, holders)
	}
	if s.rec.Head().Open == old.Open {
		p.PinnedBy = holders
		p.SharedWith, err = s.sharer(h.Snapshot, old.Open)
	}
	return err
}

// pushFrom shows the record's open layer above that of the old head, and confirms
// the move to it. If that is pinned after all, the record goes back to it, and its
// holders are returned.
func (s *Session) pushFrom(ctx context.Context, old snapshot.Head) ([]snapshot.Holder, error) {
	h := s.rec.Head()
	v, err := s.rec.View(h)
	if err != nil {
		s.confirm()
		return nil, err
	}
	if _, err = s.show(ctx, v); err == nil {
		if s.doubt != nil {
			return nil, nil
		}
		return nil, s.forsake(ctx, old)
	}
	h.Open, h.Stands = old.Open, old.Stands
	if e := s.move(h); e != nil {
		return nil, errors.Join(err, e)
	}
	// It is pinned if the old view stands; by nobody, if he has gone by now.
	var busy *snapshot.Error
	if shown, e := s.drv.Shown(ctx); e != nil || shown != old.Open || !errors.As(err, &busy) || busy.Code != snapshot.CodeTreeBusy {
		return nil, err
	}
	return busy.Holders, nil
}

// sharer is the oldest entry, from id down, that uses the layer.
func (s *Session) sharer(id snapshot.ID, layer snapshot.LayerID) (first snapshot.ID, err error) {
	for e, err := range s.rec.Chain(id) {
		if err != nil {
			return "", err
		}
		if e.Layer != layer {
			break
		}
		first = e.ID
	}
	return first, nil
}
