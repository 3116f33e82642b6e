package session

import (
	"context"
	"fmt"
	"slices"
	"time"

	"deployx/snapshot"
)

// Retention says which snapshots expire: those that are over any of the bounds.
// A snapshot that is pinned does not, nor does one that it stands on or that
// stands on it.
type Retention struct {
	Age   time.Duration // older than this
	Last  int           // not among so many newest commands; 0 is no bound
	Bytes int64         // beyond what so many bytes of layers hold, the newest first; 0 is no bound

	Undone bool // what is rolled back goes in any case, and can no longer be redone
}

// CollectTo is Collect with more bounds.
func (s *Session) CollectTo(ctx context.Context, r Retention, dry bool) (x Expired, err error) {
	err = s.exclusively(ctx, func() error {
		x, err = s.expire(ctx, r, dry)
		return err
	})
	return x, err
}

// Keep pins a snapshot, so that it does not expire, or with off takes the pin
// away.
func (s *Session) Keep(ctx context.Context, id snapshot.ID, off bool) error {
	return s.exclusively(ctx, func() error {
		if f := s.rec.Head().Floor; f != nil && id <= f.Snapshot {
			return &snapshot.Error{
				Code: snapshot.CodeExpired, Msg: fmt.Sprintf("snapshot %s has expired", id),
				Hint: "only one that can still be rolled back to can be kept; deployx log lists them",
			}
		}
		if _, err := s.rec.Snapshot(id); err != nil {
			return err
		}
		if h := s.rec.Head(); h.Retire && !off { // what is left is not to be committed
			h.Retire = false
			if err := s.move(h); err != nil {
				return err
			}
		}
		return s.rec.Pin(id, off)
	})
}

// Pinned lists the snapshots that must not expire.
func (s *Session) Pinned() ([]snapshot.ID, error) { return s.rec.Pinned() }

// held are the entries that pins keep from going: the pinned ones, and what they
// stand on above the floor.
func (s *Session) held() (map[snapshot.ID]bool, error) {
	ids, err := s.rec.Pinned()
	if err != nil {
		return nil, err
	}
	held := map[snapshot.ID]bool{}
	for _, id := range ids {
		for e, err := range s.rec.Chain(id) {
			if err != nil {
				return nil, err
			}
			held[e.ID] = true
		}
	}
	return held, nil
}

// refusePins refuses to let go of what is pinned.
func (s *Session) refusePins(x *Expired) error {
	ids, err := s.rec.Pinned()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if slices.Contains(x.Snapshots, id) || slices.Contains(x.Undone, id) {
			return &snapshot.Error{
				Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("snapshot %s is kept", id),
				Hint: "deployx keep --off " + string(id) + " lets it go",
			}
		}
	}
	return nil
}

// foldable are the applied entries that may be the floor: those below the oldest
// that is pinned, at or below where a rolled-back one that is pinned stands. Nil
// if no pin is in the way.
func (s *Session) foldable(h snapshot.Head) (below map[snapshot.ID]bool, err error) {
	ids, err := s.rec.Pinned()
	if err != nil || len(ids) == 0 {
		return nil, err
	}
	var chain []snapshot.ID // newest first
	for e, err := range s.rec.Chain(h.Snapshot) {
		if err != nil {
			return nil, err
		}
		chain = append(chain, e.ID)
	}
	from := 0 // the first of the chain that may be the floor
	for _, id := range ids {
		for e, err := range s.rec.Chain(id) {
			if err != nil {
				return nil, err
			}
			if at := slices.Index(chain, e.ID); at >= 0 {
				if e.ID == id {
					at++
				}
				from = max(from, at)
				break
			}
			if e.Parent == "" || h.Floor != nil && e.Parent == h.Floor.Snapshot {
				from = len(chain)
			}
		}
	}
	below = map[snapshot.ID]bool{}
	for _, id := range chain[from:] {
		below[id] = true
	}
	return below, nil
}

// over tells, newest entry first, which are over the bounds.
type over struct {
	r        Retention
	before   time.Time
	commands int
	bytes    int64
	counted  map[snapshot.LayerID]bool
	usage    func(snapshot.LayerID) (int64, error)
}

func (s *Session) over(ctx context.Context, r Retention) *over {
	known := s.knownUsage()
	o := &over{r: r, before: time.Now().Add(-r.Age), counted: map[snapshot.LayerID]bool{}}
	if r.Age < 0 {
		o.before = time.Time{}
	}
	o.usage = func(id snapshot.LayerID) (int64, error) {
		if u, ok := known[id]; ok {
			return u.Bytes, nil
		}
		u, err := s.drv.Usage(ctx, id)
		return u.Bytes, err
	}
	return o
}

func (o *over) next(e snapshot.Snapshot) (bool, error) {
	if e.Kind == snapshot.KindCommand {
		o.commands++
	}
	large, err := o.large(e)
	return large || e.Started.Before(o.before) || o.r.Last > 0 && o.commands > o.r.Last, err
}

// large counts an entry's layer, and tells whether that is too much.
func (o *over) large(e snapshot.Snapshot) (bool, error) {
	if o.r.Bytes <= 0 {
		return false, nil
	}
	if e.Layer != "" && !o.counted[e.Layer] {
		n, err := o.usage(e.Layer)
		if err != nil {
			return false, err
		}
		o.bytes, o.counted[e.Layer] = o.bytes+n, true
	}
	return o.bytes > o.r.Bytes, nil
}
