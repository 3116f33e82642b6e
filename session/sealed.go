package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// A layer that a process holds cannot be sealed: it goes on taking writes.
// Under the policy seal its content is copied out instead, at each point, as an
// ordinary layer on top of the entries (snapshot.Sealer). The tree shows what it
// showed, the head says on what the live layer stands (snapshot.Standing), and
// log, diff, fold and rollback see entries like others. See docs/design.md,
// "Sealing".

// kept tells whether the head's open layer is one that is kept by copies.
func kept(h snapshot.Head) bool { return h.Stands != nil && h.Stands.From == h.Open && h.Open != "" }

// seals tells whether a layer with these holders is to be kept by copies.
func (s *Session) seals(h snapshot.Head, holders []snapshot.Holder) bool {
	_, ok := s.drv.(snapshot.Sealer)
	return ok && (kept(h) || len(holders) > 0 && s.o.OnPinned == Seal)
}

// copyOut makes a layer of what the tree shows and the entries do not; "" if
// they agree. only, if not nil, says which paths are to be taken.
func (s *Session) copyOut(ctx context.Context, v snapshot.View, layers []snapshot.LayerID, only func(string) bool) (id snapshot.LayerID, n tally, err error) {
	sealer, ok := s.drv.(snapshot.Sealer)
	if !ok {
		return "", n, fmt.Errorf("the driver %s cannot seal a pinned layer", s.drv.Name())
	}
	id = snapshot.NewLayerID()
	var found snapshot.Captured
	err = s.sparing(func() (err error) {
		found, err = sealer.Capture(ctx, v, layers, id, snapshot.CaptureOptions{Only: only})
		return err
	})
	if err != nil || !found.Differs {
		return "", n, err
	}
	crash.Point("session.captured")
	if found.Counts != nil {
		return id, tally{Counts: *found.Counts}, nil
	}
	n, err = s.count(ctx, snapshot.View{Layers: layers, Open: id})
	if err != nil {
		err = errors.Join(err, s.drv.Discard(ctx, id))
	}
	return id, n, err
}

// capture brings the entries up to what a pinned tree shows: what others wrote
// since becomes drift. A layer that belongs to commands already, for it was shared
// or pinned in the last moment, gets a copy that stands for it from then on. Redo
// stays possible if the caller wants it so.
func (s *Session) capture(ctx context.Context, redo bool) (drift *snapshot.Snapshot, err error) {
	h := s.rec.Head()
	v, below, err := s.pinnedViews(h)
	if err != nil {
		return nil, err
	}
	owned := s.owned(h)
	id, n, err := s.copyOut(ctx, v, below.Layers, nil)
	if err != nil || id == "" && !owned {
		return nil, err
	}
	var entries []snapshot.Snapshot
	if owned {
		h.Copied = maps.Clone(h.Copied)
		if h.Copied == nil {
			h.Copied = map[snapshot.LayerID]snapshot.LayerID{}
		}
		h.Copied[h.Open] = id
	} else {
		drift = &snapshot.Snapshot{
			ID: snapshot.NewID(), Parent: h.Snapshot, Kind: snapshot.KindDrift, Layer: id,
			Context: h.Context, Started: time.Now(), Mode: snapshot.ModeSealed,
		}
		n.into(drift)
		entries = append(entries, *drift)
		if h.Snapshot = drift.ID; !redo {
			h.Redo = nil
		}
	}
	h.Stands = &snapshot.Standing{Layers: v.Layers, From: h.Open}
	if err := s.commit(ctx, h, entries...); err != nil {
		return nil, errors.Join(err, s.drv.Discard(ctx, id))
	}
	return drift, nil
}

// views are what the tree shows, and what the entries make up.
func (s *Session) views(h snapshot.Head) (v, below snapshot.View, err error) {
	if v, err = s.rec.View(h); err != nil {
		return v, below, err
	}
	below, err = s.rec.Below(h)
	return v, below, err
}

// pinnedView is what a pinned tree shows. Where the head does not say on what the open
// layer stands, the driver does: layers that are part of base by now go on hiding what
// base gets later at the names that they removed.
func (s *Session) pinnedView(h snapshot.Head) (v snapshot.View, err error) {
	v, err = s.rec.View(h)
	if d, ok := s.drv.(snapshot.Stander); ok && err == nil && h.Stands == nil {
		v.Layers, err = d.StandsOn(h.Open)
	}
	return v, err
}

// pinnedViews are that, and what the entries make up.
func (s *Session) pinnedViews(h snapshot.Head) (v, below snapshot.View, err error) {
	if v, err = s.pinnedView(h); err == nil {
		below, err = s.rec.Below(h)
	}
	return v, below, err
}

// sealPinned takes the point before a command in a pinned tree.
func (s *Session) sealPinned(ctx context.Context, p *snapshot.Snapshot, holders []snapshot.Holder) error {
	p.PinnedBy, p.Mode = holders, snapshot.ModeSealed
	if _, err := s.capture(ctx, false); err != nil {
		return fmt.Errorf("seal pinned layer: %w", err)
	}
	p.ID = snapshot.NewID() // sorts after the drift
	return nil
}

// sealCommand gives a command that ran in a pinned tree its layer. What others
// changed while it ran becomes drift above it.
func (s *Session) sealCommand(ctx context.Context, h *snapshot.Head, p *snapshot.Snapshot, holders []snapshot.Holder) (others []snapshot.Snapshot, err error) {
	v, below, err := s.pinnedViews(*h)
	if err != nil {
		return nil, err
	}
	w := s.writers
	s.writers = nil
	ours, theirs := w.seen()
	if ours {
		var n tally
		if p.Layer, n, err = s.copyOut(ctx, v, below.Layers, w.only()); err != nil {
			return nil, fmt.Errorf("seal pinned layer: %w", err)
		}
		n.into(p)
	}
	if p.Mode = snapshot.ModeSealed; len(p.PinnedBy) == 0 {
		p.PinnedBy = holders
	}
	h.Stands = &snapshot.Standing{Layers: v.Layers, From: h.Open}
	if !theirs {
		return nil, nil
	}
	layers := below.Layers
	if p.Layer != "" {
		layers = append(slices.Clone(layers), p.Layer)
	}
	id, n, err := s.copyOut(ctx, v, layers, nil)
	if err != nil || id == "" {
		return nil, err
	}
	drift := snapshot.Snapshot{
		ID: snapshot.NewID(), Parent: p.ID, Kind: snapshot.KindDrift, Layer: id, Started: time.Now(), Mode: snapshot.ModeSealed,
	}
	n.into(&drift)
	return []snapshot.Snapshot{drift}, nil
}

// unpin shows a fresh layer above the one that was pinned, sealed now as it is,
// and copies what was written to that until then. The view stands on it until
// the next swap. If it is pinned after all its holders are returned, and nothing
// has changed.
func (s *Session) unpin(ctx context.Context, redo bool) ([]snapshot.Holder, error) {
	old := s.rec.Head()
	h := s.rec.Head()
	h.Stands = &snapshot.Standing{Layers: append(slices.Clone(h.Stands.Layers), h.Open), From: h.Open}
	h.Open = snapshot.NewLayerID()
	if err := s.move(h); err != nil {
		return nil, err
	}
	crash.Point("session.unpinning")
	if held, err := s.pushFrom(ctx, old); err != nil || len(held) > 0 {
		return held, err
	}
	crash.Point("session.unpinned")
	return nil, s.captureRest(ctx, redo)
}

// standAlone shows the layers of the entries in the place of those that the view
// stands on since it was pinned. What is in the open layer becomes an entry. It does
// nothing while the tree is pinned.
func (s *Session) standAlone(ctx context.Context) error {
	old := s.rec.Head()
	if old.Stands == nil || kept(old) {
		return nil
	}
	v, err := s.rec.View(old)
	if err != nil {
		return err
	}
	dirty, err := s.drv.Dirty(ctx, v)
	if err != nil {
		return err
	}
	h := s.rec.Head()
	h.Stands = nil
	if !dirty {
		return s.replace(ctx, h)
	}
	d, err := s.drift(ctx, old, v)
	if err != nil {
		return err
	}
	h.Snapshot, h.Open, h.Redo = d.ID, snapshot.NewLayerID(), nil
	if err := s.commit(ctx, h, d); err != nil {
		return err
	}
	held, err := s.pushFrom(ctx, old)
	if err == nil && len(held) > 0 {
		err = busy(s.o.Tree.Path, held)
	}
	return err
}

// captureRest copies what was written to a layer that was pinned until it was
// frozen: drift.
func (s *Session) captureRest(ctx context.Context, redo bool) error {
	h := s.rec.Head()
	if h.Stands == nil || h.Stands.From == "" || kept(h) {
		return nil
	}
	last := len(h.Stands.Layers) - 1
	v := snapshot.View{Layers: h.Stands.Layers[:last], Open: h.Stands.Layers[last]}
	below, err := s.rec.Below(h)
	if err != nil {
		return err
	}
	id, n, err := s.copyOut(ctx, v, below.Layers, nil)
	if err != nil {
		return fmt.Errorf("copy what was pinned: %w", err)
	}
	h.Stands.From = ""
	var entries []snapshot.Snapshot
	if id != "" {
		drift := snapshot.Snapshot{
			ID: snapshot.NewID(), Parent: h.Snapshot, Kind: snapshot.KindDrift, Layer: id,
			Context: h.Context, Started: time.Now(), Mode: snapshot.ModeSealed,
		}
		n.into(&drift)
		entries = append(entries, drift)
		if h.Snapshot = entries[0].ID; !redo {
			h.Redo = nil
		}
	}
	return s.commit(ctx, h, entries...)
}

// catchUp brings the record up to a tree that is or was pinned, as far as it can
// without a swap of a layer that was not: what is left is for the ordinary ways.
// It returns the holders if the tree is kept by copies now.
func (s *Session) catchUp(ctx context.Context, redo bool) ([]snapshot.Holder, error) {
	h := s.rec.Head()
	if h.Open == "" {
		return nil, nil
	}
	if err := s.captureRest(ctx, redo); err != nil {
		return nil, err
	}
	if h = s.rec.Head(); !kept(h) && s.o.OnPinned != Seal {
		return nil, nil
	}
	holders, err := s.pinned(ctx)
	if err != nil {
		return nil, err
	}
	if len(holders) == 0 && kept(h) {
		holders, err = s.unpin(ctx, redo)
	}
	if err != nil || !s.seals(s.rec.Head(), holders) {
		return nil, err
	}
	_, err = s.capture(ctx, redo)
	return holders, err
}

// forsake gives up layers that the view stood on, and no entry names, once
// another is shown.
func (s *Session) forsake(ctx context.Context, old snapshot.Head) error {
	if old.Stands == nil {
		return nil
	}
	h := s.rec.Head()
	if h.Stands != nil {
		return nil // the view still stands on them, or on some
	}
	for _, l := range old.Stands.Layers {
		named, err := s.named(l)
		if err == nil && !named {
			err = s.drv.Discard(ctx, l)
		}
		if err != nil && snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
			return err
		}
	}
	return nil
}

// named tells whether any entry, applied or not, has a layer.
func (s *Session) named(l snapshot.LayerID) (bool, error) {
	h := s.rec.Head()
	if l == h.Open || h.Floor != nil && h.Floor.Layer == l {
		return true, nil
	}
	all, err := s.rec.All()
	if err != nil {
		return true, err
	}
	for _, id := range all {
		e, err := s.rec.Snapshot(id)
		if err != nil || e.Layer == l {
			return true, err
		}
	}
	return false, nil
}

// drifted tells whether others have written since the last entry. It changes
// nothing.
func (s *Session) drifted(ctx context.Context, h snapshot.Head, v snapshot.View) (bool, error) {
	sealer, ok := s.drv.(snapshot.Sealer)
	if !ok || !kept(h) {
		dirty, _, err := s.glance(ctx, v)
		return dirty, err
	}
	below, err := s.rec.Below(h)
	if err != nil {
		return false, err
	}
	found, err := sealer.Capture(ctx, v, below.Layers, "", snapshot.CaptureOptions{})
	return found.Differs, err
}
