package session

import (
	"context"
	"errors"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// showAnew shows what the record says with a fresh open layer, so that the tree
// stands on nothing that the record no longer lists. What others wrote to the old
// open layer, in the last moment too, is recorded as drift. CodeTreeBusy, with the
// names, if somebody holds the tree; it then shows what it showed.
func (s *Session) showAnew(ctx context.Context) error {
	h := s.rec.Head()
	if h.Open == "" {
		return nil
	}
	p := snapshot.Snapshot{}
	if err := s.seal(ctx, &p, h); err != nil {
		return err
	}
	if len(p.PinnedBy) > 0 {
		return busy(s.o.Tree.Path, p.PinnedBy)
	}
	if s.rec.Head().Open != h.Open { // it was dirty, and is sealed now
		return nil
	}
	return s.replace(ctx, h)
}

// replace shows h with a fresh open layer in the place of the one that is shown, which
// is clean.
func (s *Session) replace(ctx context.Context, h snapshot.Head) error {
	was := s.rec.Head()
	h.Replaced, h.Open = was.Open, snapshot.NewLayerID()
	if err := s.commit(ctx, h); err != nil {
		return err
	}
	crash.Point("session.anew.moved")
	held, err := s.pushFrom(ctx, was)
	if err != nil {
		return err
	}
	if len(held) > 0 {
		return errors.Join(busy(s.o.Tree.Path, held), s.dropReplaced(ctx))
	}
	crash.Point("session.anew.shown")
	return s.dropReplaced(ctx)
}

// dropReplaced gives up the open layer that another one took the place of. If
// somebody wrote to it in the last moment it is drift, and goes beneath.
func (s *Session) dropReplaced(ctx context.Context) error {
	for s.rec.Head().Replaced != "" {
		h := s.rec.Head()
		old := h.Replaced
		if old == h.Open { // it came back, for it was held
			h.Replaced = ""
			return s.move(h)
		}
		v, err := s.rec.View(h)
		if err != nil {
			return err
		}
		below := snapshot.View{Layers: v.Layers, Open: old}
		dirty, err := s.drv.Dirty(ctx, below)
		if err != nil {
			return err
		}
		if !dirty {
			h.Replaced = ""
			if err := s.move(h); err != nil {
				return err
			}
			crash.Point("session.anew.dropped")
			return s.drv.Discard(ctx, old)
		}
		if err := s.putBeneath(ctx, h, below, v); err != nil {
			return err
		}
	}
	return nil
}

// putBeneath records what is in late, a layer that is not shown any more, as
// drift, and shows it below the open layer of v, which becomes drift too if it is
// dirty.
func (s *Session) putBeneath(ctx context.Context, h snapshot.Head, late, v snapshot.View) error {
	d, err := s.drift(ctx, snapshot.Head{Snapshot: h.Snapshot, Open: late.Open, Context: h.Context}, late)
	if err != nil {
		return err
	}
	to := h
	to.Snapshot, to.Redo, to.Replaced, to.Open = d.ID, nil, h.Open, snapshot.NewLayerID()
	if err := s.commit(ctx, to, d); err != nil {
		return err
	}
	crash.Point("session.anew.late")
	if _, err := s.drv.Show(ctx, snapshot.View{Layers: append(v.Layers, late.Open), Open: to.Open}); err != nil {
		return errors.Join(err, s.move(h))
	}
	return nil
}
