package session

import (
	"context"
	"fmt"
	"slices"

	"deployx/snapshot"
)

// Forget gives up one snapshot: it can no longer be gone back to, and what its
// command did stays; one that was rolled back goes for good. It never takes
// another snapshot along unless older is set: then those below an applied one
// go with it, and rollbacks that lead away from below it. n is how many went, 0 for one that had gone before.
//
// Layers stand on each other, so an applied snapshot can only go when none is
// below it, and one that was rolled back when none stands on it; else the error
// is CodeUnsupported and names the others.
func (s *Session) Forget(ctx context.Context, id snapshot.ID, older bool) (n int, err error) {
	var x Expired
	err = s.exclusively(ctx, func() error { return s.forget(ctx, id, older, &x) })
	if err != nil {
		if snapshot.CodeOf(err) == snapshot.CodeExpired {
			err = nil
		}
		return 0, err
	}
	return len(x.Snapshots) + len(x.Undone), s.EmptyTrash(ctx)
}

func (s *Session) forget(ctx context.Context, id snapshot.ID, older bool, x *Expired) error {
	e, err := s.rec.Snapshot(id)
	if err != nil {
		return err
	}
	h := s.rec.Head()
	if h.Committing != "" {
		return &snapshot.Error{
			Code: snapshot.CodeTreeBusy, Msg: "a commit is not finished, and needs the layers as they are",
			Hint: "deployx commit goes on with it, and names what keeps it from that",
		}
	}
	if h.Floor != nil && id == h.Floor.Snapshot {
		return nil // its entry stays as the floor's mark
	}
	applied, err := s.below(h, id, x)
	if err != nil {
		return err
	}
	if !applied {
		return s.dropUndone(ctx, h, e, x)
	}
	if n := len(x.Snapshots) - 1; n > 0 && !older {
		return standing(id, fmt.Sprintf("older ones below it: %d", n), x.Snapshots[:n],
			"clean those up first, or all of them together with include_older")
	}
	kept, err := s.keptRedo(h, id, &over{})
	if err != nil {
		return err
	}
	if n := len(h.Redo) - len(kept); n > 0 && !older {
		return standing(id, fmt.Sprintf("rollbacks that could no longer be taken back: %d", n), nil, "clean up what was rolled back first, or all together with include_older")
	}
	return s.giveUp(ctx, h, id, kept, x)
}

// below lists an applied entry and what is below it, oldest first, and says
// whether it is applied.
func (s *Session) below(h snapshot.Head, id snapshot.ID, x *Expired) (applied bool, err error) {
	above := h.Open
	for e, err := range s.rec.Chain(h.Snapshot) {
		if err != nil {
			return false, err
		}
		if e.ID == id && e.Layer != "" && e.Layer == above {
			return true, &snapshot.Error{
				Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("snapshot %s shares its layer with what came after it", id),
				Hint: "they are one point to go back to; clean up the newest of them when no process holds the tree",
			}
		}
		if e.Layer != "" {
			above = e.Layer
		}
		if applied = applied || e.ID == id; applied {
			x.Snapshots = append(x.Snapshots, e.ID)
		}
	}
	slices.Reverse(x.Snapshots)
	return applied, nil
}

// dropUndone removes an entry that was rolled back. A redo that led to it then
// leads to the one below it.
func (s *Session) dropUndone(ctx context.Context, h snapshot.Head, e snapshot.Snapshot, x *Expired) error {
	all, err := s.rec.All()
	if err != nil {
		return err
	}
	var on []snapshot.ID
	for _, id := range all {
		o, err := s.rec.Snapshot(id)
		if err != nil {
			return err
		}
		if o.Parent == e.ID {
			on = append(on, id)
		}
	}
	if len(on) > 0 {
		return standing(e.ID, fmt.Sprintf("others stand on it that were rolled back with it: %d", len(on)), on, "clean those up first")
	}
	kept, err := s.redoWithout(h, e)
	if err != nil {
		return err
	}
	x.Undone = []snapshot.ID{e.ID}
	return s.giveUp(ctx, h, "", kept, x)
}

// redoWithout are the rollbacks that can be taken back when e is gone: one that
// led to e and more leads to that more (before e, the shell's context was e's).
func (s *Session) redoWithout(h snapshot.Head, e snapshot.Snapshot) ([]snapshot.Frame, error) {
	reached := map[snapshot.ID]bool{"": true, h.Snapshot: true}
	for a, err := range s.rec.Chain(h.Snapshot) {
		if err != nil {
			return nil, err
		}
		reached[a.ID], reached[a.Parent] = true, true
	}
	for _, f := range h.Redo {
		reached[f.Snapshot] = true
	}
	var kept []snapshot.Frame
	for _, f := range h.Redo {
		switch {
		case f.Snapshot != e.ID:
			kept = append(kept, f)
		case !reached[e.Parent]:
			f.Snapshot, f.Context = e.Parent, e.Context
			kept = append(kept, f)
		}
	}
	return kept, nil
}

func standing(id snapshot.ID, why string, others []snapshot.ID, hint string) error {
	err := &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("snapshot %s cannot go alone: %s", id, why), Hint: hint}
	for _, o := range others[:min(len(others), 10)] {
		err.Candidates = append(err.Candidates, string(o))
	}
	return err
}
