package session

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// Expired tells what retention did, or with dry would do.
type Expired struct {
	Snapshots []snapshot.ID // can no longer be rolled back to, oldest first
	Undone    []snapshot.ID // rolled back before, and now gone for good
	Discarded int           // layers given up
	InUse     int           // layers that the mounted view still stands on: they go later
}

// Collect gives up snapshots older than age: what their commands did stays, as
// one layer, and newer snapshots go on working; what was rolled back before
// that goes for good. The tree need not be idle and never leaves view.
func (s *Session) Collect(ctx context.Context, age time.Duration, dry bool) (x Expired, err error) {
	return s.CollectTo(ctx, Retention{Age: age}, dry)
}

func (s *Session) expire(ctx context.Context, r Retention, dry bool) (x Expired, err error) {
	h := s.rec.Head()
	if h.Committing != "" {
		return x, nil // its layers are needed until base has what they hold
	}
	o := s.over(ctx, r)
	floor, err := s.expiring(h, o, &x)
	if err != nil {
		return x, err
	}
	kept, err := s.keptRedo(h, floor, o)
	if err != nil {
		return x, err
	}
	if err := s.gone(h, kept, o, &x); err != nil || dry {
		return x, err
	}
	return x, s.giveUp(ctx, h, floor, kept, &x)
}

// giveUp makes an entry the floor, if one is given, keeps only those rollbacks
// that can be taken back, and removes what x lists.
func (s *Session) giveUp(ctx context.Context, h snapshot.Head, floor snapshot.ID, kept []snapshot.Frame, x *Expired) (err error) {
	if err := s.refusePins(x); err != nil {
		return err
	}
	if floor != "" || !slices.Equal(kept, h.Redo) {
		h.Redo = kept
		if floor != "" {
			if h.Floor, err = s.fold(ctx, floor); err != nil {
				return err
			}
		}
		if err := s.commit(ctx, h); err != nil {
			return err
		}
		crash.Point("session.folded")
	}
	if err := s.rec.Remove(x.Undone...); err != nil {
		return err
	}
	if err := s.forgetBelow(); err != nil {
		return err
	}
	return s.sweep(ctx, x)
}

// expiring finds the newest applied entry that is over the bounds, and lists what
// is at or below it. An entry whose layer a newer one shares is not yet, nor is one
// that a pin needs.
func (s *Session) expiring(h snapshot.Head, o *over, x *Expired) (floor snapshot.ID, err error) {
	above := h.Open
	free, err := s.foldable(h)
	if err != nil {
		return "", err
	}
	for e, err := range s.rec.Chain(h.Snapshot) {
		if err != nil {
			return "", err
		}
		if floor == "" {
			over, err := o.next(e)
			if err != nil {
				return "", err
			}
			if over && (free == nil || free[e.ID]) && (e.Layer == "" || e.Layer != above) {
				floor = e.ID
			}
		}
		if e.Layer != "" {
			above = e.Layer
		}
		if floor != "" {
			x.Snapshots = append(x.Snapshots, e.ID)
		}
	}
	slices.Reverse(x.Snapshots)
	return floor, nil
}

// keptRedo are the rollbacks that can still be taken back: those that lead to a
// young entry above the floor, as far as there is room for them.
func (s *Session) keptRedo(h snapshot.Head, floor snapshot.ID, o *over) (kept []snapshot.Frame, err error) {
	held, err := s.held()
	if err != nil {
		return nil, err
	}
	for _, f := range slices.Backward(h.Redo) {
		if o.r.Undone && !held[f.Snapshot] {
			continue
		}
		young, standing, large := false, floor == "", false
		for e, err := range s.rec.Chain(f.Snapshot) {
			if err != nil {
				return nil, err
			}
			if large, err = o.large(e); err != nil {
				return nil, err
			}
			young = young || e.ID == f.Snapshot && !e.Started.Before(o.before)
			standing = standing || e.ID == floor
		}
		if young && standing && !large {
			kept = append(kept, f)
		}
	}
	slices.Reverse(kept)
	return kept, nil
}

// gone lists the rolled-back entries that no redo leads to, no pin needs, and that
// are over the bounds: after the applied ones.
func (s *Session) gone(h snapshot.Head, redo []snapshot.Frame, o *over, x *Expired) error {
	live, err := s.held()
	if err != nil {
		return err
	}
	for _, top := range append([]snapshot.Frame{{Snapshot: h.Snapshot}}, redo...) {
		for e, err := range s.rec.Chain(top.Snapshot) {
			if err != nil {
				return err
			}
			live[e.ID] = true
		}
	}
	all, err := s.rec.All()
	if err != nil {
		return err
	}
	for _, id := range slices.Backward(all) {
		if live[id] || h.Floor != nil && id <= h.Floor.Snapshot {
			continue
		}
		e, err := s.rec.Snapshot(id)
		if err != nil {
			return err
		}
		if over, err := o.next(e); err != nil {
			return err
		} else if over || o.r.Undone {
			x.Undone = append(x.Undone, id)
		}
	}
	slices.Reverse(x.Undone)
	return nil
}

// fold makes the floor of what is at or below an entry.
func (s *Session) fold(ctx context.Context, top snapshot.ID) (*snapshot.Floor, error) {
	layers, err := s.rec.Layers(top)
	if err != nil {
		return nil, err
	}
	f := &snapshot.Floor{Snapshot: top}
	switch folder, ok := s.drv.(snapshot.Folder); {
	case len(layers) == 1:
		f.Layer = layers[0]
	case len(layers) > 1 && ok:
		f.Layer, err = folder.Fold(ctx, layers)
	case len(layers) > 1:
		err = &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: "the driver " + s.drv.Name() + " cannot let snapshots expire"}
	}
	return f, err
}

// sweep gives up every layer, output and context that nothing in the record
// names. A layer that the mounted view still stands on goes another time.
func (s *Session) sweep(ctx context.Context, x *Expired) error {
	h := s.rec.Head()
	live := map[string]bool{string(h.Open): true, string(h.Replaced): true, h.Context: true, string(s.next): true}
	if h.Stands != nil {
		for _, l := range h.Stands.Layers {
			live[string(l)] = true
		}
	}
	if h.Floor != nil {
		live[string(h.Floor.Layer)] = true
	}
	for _, f := range h.Redo {
		live[f.Context] = true
	}
	all, err := s.rec.All()
	if err != nil {
		return err
	}
	for _, id := range all {
		e, err := s.rec.Snapshot(id)
		if err != nil {
			return err
		}
		live[string(e.ID)], live[e.Context] = true, true
		if h.Floor == nil || e.ID > h.Floor.Snapshot {
			live[string(e.Layer)] = true
		}
	}
	if err := s.sweepLayers(ctx, live, x); err != nil {
		return err
	}
	return sweepFiles(live, filepath.Join(s.o.Tree.Store, "output"), filepath.Join(s.o.Tree.Store, "contexts"))
}

func (s *Session) sweepLayers(ctx context.Context, live map[string]bool, x *Expired) error {
	layers, err := s.drv.Layers(ctx)
	if err != nil {
		return err
	}
	for _, l := range layers {
		if live[string(l)] {
			continue
		}
		switch err := s.drv.Discard(ctx, l); {
		case snapshot.CodeOf(err) == snapshot.CodeTreeBusy && err != nil:
			x.InUse++
		case err != nil:
			return err
		default:
			x.Discarded++
		}
	}
	return nil
}

func sweepFiles(live map[string]bool, dirs ...string) error {
	for _, dir := range dirs {
		names, err := os.ReadDir(dir)
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		for _, n := range names {
			if !live[n.Name()] {
				if err := os.Remove(filepath.Join(dir, n.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Expire is Collect and EmptyTrash, and counts what expired. The trash is emptied
// also where the tree is not to be had.
func (s *Session) Expire(ctx context.Context, age time.Duration) (n int, err error) {
	x, err := s.CollectTo(ctx, Retention{Age: age, Last: s.o.KeepLast, Bytes: s.o.KeepBytes}, false)
	if n = len(x.Snapshots) + len(x.Undone); err != nil {
		n = 0
	}
	return n, errors.Join(err, s.EmptyTrash(ctx))
}
