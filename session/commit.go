package session

import (
	"context"
	"fmt"
	"slices"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// Committed tells what a commit did.
type Committed struct {
	Snapshots []snapshot.ID // part of base now, oldest first
	Undone    int           // rollbacks that can no longer be taken back
	Paths     int64         // that were looked at in the layers
	Remaining int           // applied entries that are not part of base
	// Pending: these snapshots can no longer be rolled back, but base will get
	// what they did only once the tree can be shown anew (see PinnedBy).
	Pending  bool
	Plain    bool // no layer is left: a plain directory
	PinnedBy []snapshot.Holder
	Duration time.Duration
}

// CommitOptions refine a commit.
type CommitOptions struct {
	// Through is the newest entry to commit; "" commits all that is sealed or
	// can be.
	Through  snapshot.ID
	Progress func(snapshot.Progress)
}

// Commit makes the oldest entries part of base, in place; the tree shows the
// same all the time, and may be in use. They can no longer be rolled back. On an
// error nothing is lost, and another Commit, or whatever opens the session next,
// goes on with it.
func (s *Session) Commit(ctx context.Context, o CommitOptions) (c Committed, err error) {
	err = s.exclusively(ctx, func() error {
		start := time.Now()
		err := s.commitThrough(ctx, o, &c)
		c.Duration = time.Since(start)
		return err
	})
	return c, err
}

func (s *Session) commitThrough(ctx context.Context, o CommitOptions, c *Committed) error {
	s.upkeep.end(upkeepGrace) // it reads base
	if o.Through == "" && s.rec.Head().Open != "" {
		if err := s.seal(ctx, &snapshot.Snapshot{}, s.rec.Head()); err != nil {
			return err
		}
	}
	if o.Through == "" {
		if err := s.standAlone(ctx); err != nil {
			return err
		}
	}
	before := s.rec.Head()
	if before.Stands != nil { // what is shown stands on other layers, and may lead into base by redirects
		return &snapshot.Error{
			Code: snapshot.CodeTreeBusy, Msg: "the tree is or was pinned, and shows a layer that has been sealed by copies",
			Hint: "stop what holds it (deployx status names it) and commit then, without --through",
		}
	}
	top, err := s.committable(before, o.Through, c)
	if err != nil {
		return err
	}
	if top != "" {
		if err := s.beginCommit(ctx, top, c); err != nil {
			return err
		}
	}
	if s.rec.Head().Committing != "" {
		err := s.completeCommit(ctx, func(p snapshot.Progress) {
			if c.Paths = p.Files; o.Progress != nil {
				o.Progress(p)
			}
		})
		if c.Pending = pinnedStill(err); err != nil && !c.Pending {
			return err
		}
	}
	return s.windUp(ctx, c, top != "")
}

// committable finds the entry through which to commit, and lists what is at or
// below it; "" if there is nothing to commit. Entries that share the layer of
// the one that was asked for come with it: they are one rollback point. A layer
// that takes writes stays, and what is above it.
func (s *Session) committable(h snapshot.Head, through snapshot.ID, c *Committed) (top snapshot.ID, err error) {
	var chain []snapshot.Snapshot // newest first
	first := 0                    // that can be committed
	for e, err := range s.rec.Chain(h.Snapshot) {
		if err != nil {
			return "", err
		}
		chain = append(chain, e)
		if e.Layer != "" && e.Layer == h.Open {
			first = len(chain)
		}
	}
	at := first
	if through != "" {
		if _, err := s.rec.Above(through); err != nil {
			return "", err
		}
		at = slices.IndexFunc(chain, func(e snapshot.Snapshot) bool { return e.ID == through })
		if at < first {
			return "", s.refuseOpen(through)
		}
		for at > first && chain[at].Layer != "" && chain[at-1].Layer == chain[at].Layer {
			at--
		}
	}
	if at == len(chain) {
		if h.Floor != nil && h.Floor.Layer != "" && through == "" && h.Committing == "" {
			return h.Floor.Snapshot, nil // what expired snapshots did
		}
		return "", nil
	}
	for _, e := range slices.Backward(chain[at:]) {
		c.Snapshots = append(c.Snapshots, e.ID)
	}
	return chain[at].ID, nil
}

func (s *Session) refuseOpen(id snapshot.ID) error {
	held, err := s.drv.Holders(context.Background())
	if err != nil {
		return err
	}
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("the layer of %s still takes writes", id), Holders: held,
		Hint: "stop these processes or let deployx stop them with --on-pinned stop; deployx commit without --through commits what is below",
	}
}

// beginCommit moves the record: from here on what is at or below top cannot be
// rolled back, and whoever opens the session finishes what is begun.
func (s *Session) beginCommit(ctx context.Context, top snapshot.ID, c *Committed) error {
	committer, ok := s.drv.(snapshot.Committer)
	if !ok {
		return &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: "the driver " + s.drv.Name() + " cannot commit"}
	}
	layers, err := s.rec.Layers(top)
	if err != nil {
		return err
	}
	h := s.rec.Head()
	kept, err := s.keptRedo(h, top, &over{})
	if err != nil {
		return err
	}
	settled, err := committer.Settle(ctx, layers)
	if err != nil {
		return fmt.Errorf("prepare commit: %w", err)
	}
	c.Undone = len(h.Redo) - len(kept)
	h.Redo, h.Committing = kept, top
	if settled != "" {
		h.Floor = &snapshot.Floor{Snapshot: top, Layer: settled}
	}
	if err := s.commitDurably(ctx, h); err != nil {
		return err
	}
	crash.Point("session.commit.begun")
	return nil
}

// commitDurably is commit that flushes whatever the session's durability is:
// base must never be ahead of the record.
func (s *Session) commitDurably(ctx context.Context, h snapshot.Head) error {
	if s.o.Fast {
		if err := s.drv.Sync(ctx); err != nil {
			return err
		}
	}
	if err := s.commit(ctx, h); err != nil {
		return err
	}
	return s.doubt // nothing that cannot be taken back may follow
}

// completeCommit gives base what the record says it gets, and then drops the
// layers from the record. CodeTreeBusy if the tree has to be shown anew for that
// and cannot be: then everything stays as it is, and it can be tried again.
func (s *Session) completeCommit(ctx context.Context, progress func(snapshot.Progress)) error {
	h := s.rec.Head()
	layers, err := s.rec.Layers(h.Committing)
	if err != nil {
		return err
	}
	committer, ok := s.drv.(snapshot.Committer)
	if !ok {
		return fmt.Errorf("the driver %s cannot commit", s.drv.Name())
	}
	if h.Open != "" { // the driver then knows the view as the record has it
		v, err := s.rec.View(h)
		if err != nil {
			return err
		}
		if _, err := s.drv.Show(ctx, v); err != nil {
			return err
		}
	}
	if err := s.drv.Sync(ctx); err != nil { // the head too, if another process has moved it
		return err
	}
	err = committer.Commit(ctx, layers, progress)
	if pinnedStill(err) {
		if err := s.showAnew(ctx); err != nil {
			return err
		}
		err = committer.Commit(ctx, layers, progress)
	}
	if err != nil {
		return err
	}
	crash.Point("session.commit.applied")
	h = s.rec.Head()
	h.Floor = &snapshot.Floor{Snapshot: h.Committing}
	h.Committed, h.Committing = h.Committing, ""
	if err := s.commitDurably(ctx, h); err != nil {
		return err
	}
	crash.Point("session.commit.dropped")
	return nil
}

func pinnedStill(err error) bool { return err != nil && snapshot.CodeOf(err) == snapshot.CodeTreeBusy }

// resumeCommit goes on with a commit that was cut off. If it cannot the tree can
// be worked on all the same.
func (s *Session) resumeCommit(ctx context.Context) {
	if s.rec.Head().Committing == "" {
		return
	}
	s.found.Committing = s.rec.Head().Committing
	if err := s.completeCommit(ctx, nil); err != nil {
		s.o.Warn(fmt.Sprintf("the commit through %s is not finished yet: %v", s.found.Committing, err))
	}
}

// windUp unmounts a tree without layers, or shows a shorter stack, and gives up
// what is not needed any more. What fails there is done another time.
func (s *Session) windUp(ctx context.Context, c *Committed, dropped bool) (err error) {
	s.afterwards("unmount", s.settle(ctx))
	h := s.rec.Head()
	if h.Open != "" && dropped && !c.Pending {
		s.afterwards("show fewer layers", s.shorten(ctx, h))
	}
	if c.Plain = s.rec.Head().Open == ""; !c.Plain {
		if c.PinnedBy, err = s.drv.Holders(ctx); err != nil {
			return err
		}
	}
	if c.Remaining, err = s.applied(); err != nil {
		return err
	}
	s.afterwards("remove old entries", s.forgetBelow())
	s.afterwards("give up old layers", s.sweep(ctx, &Expired{}))
	return nil
}

// shorten shows the record's stack, which has lost its bottom, if the open layer
// is clean and nobody holds it. Otherwise the next swap does.
func (s *Session) shorten(ctx context.Context, h snapshot.Head) error {
	v, err := s.rec.View(h)
	if err != nil || len(v.Layers) == 0 || s.owned(h) {
		return err
	}
	if depth, limit := s.drv.Depth(v); limit == 0 || depth == 0 {
		return nil // nothing is stacked
	}
	if dirty, err := s.drv.Dirty(ctx, v); err != nil || dirty {
		return err
	}
	if err := s.showAnew(ctx); err != nil && !pinnedStill(err) {
		return err
	}
	return nil
}

// forgetBelow removes the entries below the floor; the floor's own stays as its
// mark.
func (s *Session) forgetBelow() error {
	floor := s.rec.Head().Floor
	if floor == nil || s.rec.Head().Committing != "" {
		return nil
	}
	all, err := s.rec.All()
	if err != nil {
		return err
	}
	var old []snapshot.ID
	for _, id := range all {
		if id < floor.Snapshot {
			old = append(old, id)
		}
	}
	return s.rec.Remove(old...)
}
