package session

import (
	"context"
	"slices"

	"deployx/snapshot"
)

// showAgain ends the Show of the view that the tree shows: who moved the record there may
// have been killed in it.
func (s *Session) showAgain(ctx context.Context) error {
	v, err := s.rec.View(s.rec.Head())
	if err == nil {
		_, err = s.drv.Show(ctx, v)
	}
	return err
}

// reshow shows the view of the record where the tree shows something else.
func (s *Session) reshow(ctx context.Context, shown snapshot.LayerID) error {
	h := s.rec.Head()
	s.found.Reshown = true
	if h.Open == "" {
		return s.drv.Hide(ctx)
	}
	v, err := s.rec.View(h)
	if err != nil {
		return err
	}
	t, err := s.drv.Show(ctx, v)
	if t.Stale != nil {
		s.found.Stale = t.Stale()
	}
	if snapshot.CodeOf(err) == snapshot.CodeTreeBusy && (shown == h.Replaced || len(v.Layers) > 0 && v.Layers[len(v.Layers)-1] == shown) {
		h.Open = shown // killed between the record and the swap, and pinned since
		if n := len(v.Layers); h.Stands != nil && n > 0 && v.Layers[n-1] == shown {
			h.Stands.Layers, h.Stands.From = v.Layers[:len(v.Layers)-1], shown
		}
		return s.move(h)
	}
	if snapshot.CodeOf(err) == snapshot.CodeTreeBusy {
		if to, ok := s.instead(h, shown); ok {
			return s.move(to)
		}
	}
	return err
}

// instead is the head h for a tree that was to be swapped to it, by a rollback or redo
// that was killed, and that somebody holds by now: it is brought there in place. That
// needs an entry which is just what the view stands on that the tree shows.
func (s *Session) instead(h snapshot.Head, shown snapshot.LayerID) (to snapshot.Head, ok bool) {
	stander, tells := s.drv.(snapshot.Stander)
	_, restores := s.drv.(snapshot.Restorer)
	if !tells || !restores || s.o.OnPinned != Seal || shown == "" || h.Stands != nil || h.Restoring != nil || h.Committing != "" {
		return h, false
	}
	if named, err := s.named(shown); err != nil || named { // redo needs it as it is
		return h, false
	}
	on, err := stander.StandsOn(shown)
	if err != nil {
		return h, false
	}
	stood := func(top snapshot.ID) bool {
		layers, err := s.rec.Layers(top)
		return err == nil && slices.Equal(layers, on)
	}
	from := h.Snapshot // of a redo: it was below
	if n := len(h.Redo); n > 0 && stood(h.Redo[n-1].Snapshot) {
		from = h.Redo[n-1].Snapshot
	} else {
		for from != "" && !stood(from) {
			e, err := s.rec.Snapshot(from)
			if err != nil {
				return h, false
			}
			from = e.Parent
		}
		if !stood(from) {
			return h, false
		}
	}
	h.Open, h.Stands, h.Restoring = shown, &snapshot.Standing{Layers: on, From: shown}, &snapshot.Restoring{From: from}
	return h, true
}
