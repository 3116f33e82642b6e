package session

import (
	"context"
	"errors"
	"slices"
	"time"

	"deployx/snapshot"
)

// redoKeeping takes the newest n rollbacks back and keeps what others wrote
// since. What a rollback kept needs no keeping when that rollback is taken back:
// it is in the state that the redo leads to.
func (s *Session) redoKeeping(ctx context.Context, n int, o RollbackOptions, start time.Time) (Undo, error) {
	h := s.rec.Head()
	drift, err := s.openDrift(ctx, h)
	if err != nil {
		return Undo{}, err
	}
	frames := h.Redo[len(h.Redo)-n:]
	u := Undo{Context: frames[0].Context, DryRun: o.DryRun}
	ways, err := s.waysBack(ctx, h.Snapshot, drift, frames)
	if err != nil {
		return u, err
	}
	for _, p := range ways {
		u.Dropped = append(p.undone, u.Dropped...)
	}
	last := ways[n-1]
	u.Kept = last.paths
	switch {
	case len(u.Kept) > 0 && o.Drift == DriftRefuse:
		return u, s.lost(ctx, last, "redo with --drift keep, or copy them away first")
	case o.DryRun:
		return u, nil
	}
	if h, err = s.sealDrift(ctx, drift); err != nil {
		return u, err
	}
	to := s.rec.Head()
	to.Snapshot, to.Context, to.Redo = frames[0].Snapshot, frames[0].Context, h.Redo[:len(h.Redo)-n]
	layers, aside, err := s.carryThrough(ctx, h, ways[:n-1], frames)
	if err == nil {
		err = s.goKeeping(ctx, layers, h, to, last, &u, start)
	}
	for _, l := range aside {
		err = errors.Join(err, s.drv.Discard(ctx, l))
	}
	return u, err
}

// waysBack are the passages from the top, by way of every frame, to the first:
// what each does again, and what of others has to come along. It refuses where
// that cannot be.
func (s *Session) waysBack(ctx context.Context, top snapshot.ID, open *snapshot.Snapshot, frames []snapshot.Frame) (ways []passage, err error) {
	var before passage
	for _, f := range slices.Backward(frames) {
		p, err := s.wayBack(top, f.Snapshot)
		if err != nil {
			return nil, err
		}
		if open != nil {
			p.others, open = append([]snapshot.Snapshot{*open}, p.others...), nil
		}
		again := p.undone
		p.undone = p.notKept()
		if err := s.check(ctx, &p, before.paths); err != nil {
			return nil, err
		}
		p.undone, p.others = again, append(before.others, p.others...)
		ways, before, top = append(ways, p), p, f.Snapshot
	}
	return ways, nil
}

// wayBack finds what lies between two tops. An id is newer than those below it,
// so the newer of two tops is never below the other.
func (s *Session) wayBack(from, to snapshot.ID) (p passage, err error) {
	step := func(id *snapshot.ID, list *[]snapshot.Snapshot) error {
		e, err := s.rec.Snapshot(*id)
		if err == nil {
			*list, *id = append(*list, e), e.Parent
		}
		return err
	}
	for from != to {
		if from > to {
			err = step(&from, &p.others)
		} else {
			err = step(&to, &p.undone)
		}
		if err != nil {
			return p, err
		}
	}
	p.others = slices.DeleteFunc(p.others, func(k snapshot.Snapshot) bool {
		if !p.holds(k.Kept) {
			return false
		}
		p.kept = append(p.kept, k.Kept...)
		return true
	})
	return p, nil
}

// holds tells whether all of some entries, and there are some, are done again.
func (p *passage) holds(ids []snapshot.ID) bool {
	for _, id := range ids {
		if !slices.ContainsFunc(p.undone, func(e snapshot.Snapshot) bool { return e.ID == id }) {
			return false
		}
	}
	return len(ids) > 0
}

// notKept is what is done again and was not there all the time.
func (p *passage) notKept() (list []snapshot.Snapshot) {
	for _, e := range p.undone {
		if !slices.Contains(p.kept, e.ID) {
			list = append(list, e)
		}
	}
	return list
}

// carryThrough makes, for a redo of several rollbacks, the states between: stacks
// that are never shown. It returns the last one, and the layers made for them.
func (s *Session) carryThrough(ctx context.Context, h snapshot.Head, ways []passage, frames []snapshot.Frame) (layers, aside []snapshot.LayerID, err error) {
	if layers, err = s.rec.Layers(h.Snapshot); err != nil {
		return nil, nil, err
	}
	for i, p := range ways {
		to := snapshot.Head{Snapshot: frames[len(frames)-1-i].Snapshot}
		k, err := s.carry(ctx, layers, p, to)
		if err != nil {
			return nil, aside, err
		}
		if layers, err = s.rec.Layers(to.Snapshot); err != nil {
			return nil, aside, err
		}
		if k != nil {
			layers, aside = append(layers, k.Layer), append(aside, k.Layer)
		}
	}
	return layers, aside, nil
}
