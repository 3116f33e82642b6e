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
	Through snapshot.ID
	// Force commits snapshots that are kept, too (Keep). They are not any more then.
	Force    bool
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
	all := o.Through == ""
	if all && s.rec.Head().Open != "" {
		if err := s.sealAll(ctx); err != nil {
			return err
		}
	}
	before := s.rec.Head()
	if err := s.refuseCopied(before, o.Through); err != nil {
		return err
	}
	top, err := s.committable(before, o.Through, c)
	if err != nil {
		return err
	}
	if top != "" {
		if err := s.refuseKept(top, o.Force); err != nil {
			return err
		}
		if err := s.beginCommit(ctx, top, c); err != nil {
			return err
		}
	}
	if s.rec.Head().Committing != "" {
		err := s.completeCommit(ctx, func(p snapshot.Progress) {
			if c.Paths = p.Files; o.Progress != nil {
				o.Progress(p)
			}
		}, c, all)
		if c.Pending = pinnedStill(err); err != nil && !c.Pending {
			return err
		}
	}
	if err := s.windUp(ctx, c, top != ""); err != nil || !all || c.Plain {
		return err
	}
	h := s.rec.Head()
	h.Retire = true
	return s.move(h)
}

// sealAll makes entries of what is in the open layer: by a copy, if it is pinned.
func (s *Session) sealAll(ctx context.Context) error {
	if err := s.seal(ctx, &snapshot.Snapshot{}, s.rec.Head()); err != nil {
		return err
	}
	err := s.standAlone(ctx)
	if pinnedStill(err) { // in the last moment
		err = s.seal(ctx, &snapshot.Snapshot{}, s.rec.Head())
	}
	return err
}

// refuseCopied refuses to commit copies of a pinned layer, but not all of them:
// what a later one removes is not in that layer any more, so that nothing would
// keep it from coming back into view.
func (s *Session) refuseCopied(h snapshot.Head, through snapshot.ID) error {
	if h.Stands == nil || through == "" {
		return nil
	}
	layers, err := s.rec.Layers(through)
	if err != nil {
		return err
	}
	if n := len(layers); n <= len(h.Stands.Layers) && slices.Equal(layers, h.Stands.Layers[:n]) {
		return nil
	}
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("the tree is or was pinned, and the layer of %s has been sealed by a copy", through),
		Hint: "deployx commit without --through commits all; or stop what holds the tree (deployx status names it)",
	}
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

// refuseKept refuses a commit through top that would take a kept snapshot: one
// that it makes part of base, or that was rolled back and does not stand above.
func (s *Session) refuseKept(top snapshot.ID, force bool) error {
	ids, err := s.rec.Pinned()
	if err != nil || force {
		return err
	}
	for _, id := range ids {
		above, parent := false, snapshot.ID("")
		for e, err := range s.rec.Chain(id) {
			if err != nil {
				return err
			}
			if e.ID == id {
				parent = e.Parent
			}
			above = above || e.Parent == top
		}
		if above {
			continue
		}
		hint := "deployx commit --force commits all the same"
		if parent != "" && !s.rec.Expired(parent) {
			hint += ", --through " + string(parent) + " what is below it"
		}
		return keptError(id, hint)
	}
	return nil
}

// keptError refuses what would take a kept snapshot; hint says what does it all the same.
func keptError(id snapshot.ID, hint string) error {
	return &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("snapshot %s is kept, and could not be rolled back to any more", id),
		Hint: "deployx keep --off " + string(id) + " lets it go, " + hint,
	}
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
	c.Undone += len(h.Redo) - len(kept)
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

// commitTries bounds how often a commit takes in what changes meanwhile in a
// pinned tree.
const commitTries = 5

// completeCommit gives base what the record says it gets, and then drops the
// layers from the record. CodeTreeBusy if the tree has to be shown anew for that
// and cannot be: then everything stays as it is, and it can be tried again. If c
// is to have all, so it gets what has changed meanwhile in a pinned tree.
func (s *Session) completeCommit(ctx context.Context, progress func(snapshot.Progress), c *Committed, all bool) error {
	committer, ok := s.drv.(snapshot.Committer)
	if !ok {
		return fmt.Errorf("the driver %s cannot commit", s.drv.Name())
	}
	h := s.rec.Head()
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
	for try := 1; ; try++ {
		layers, err := s.rec.Layers(s.rec.Head().Committing)
		if err != nil {
			return err
		}
		if err = committer.Commit(ctx, layers, progress); err == nil {
			break
		}
		if pinnedStill(err) && try < commitTries {
			err = s.makeWay(ctx, c, all)
		}
		if err != nil {
			return err
		}
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

// makeWay shows a tree anew that stands in the way of a commit. If it is pinned,
// and all is to be committed, what has changed since it was sealed goes along.
func (s *Session) makeWay(ctx context.Context, c *Committed, all bool) error {
	was := s.rec.Head().Snapshot
	err := s.showAnew(ctx)
	if err == nil {
		err = s.standAlone(ctx)
	}
	if !pinnedStill(err) || !all || s.rec.Head().Snapshot == was {
		return err
	}
	top, e := s.committable(s.rec.Head(), "", c)
	if e != nil || top == "" {
		return errors.Join(err, e)
	}
	return s.beginCommit(ctx, top, c)
}

func pinnedStill(err error) bool { return err != nil && snapshot.CodeOf(err) == snapshot.CodeTreeBusy }

// resumeCommit goes on with a commit that was cut off, or could not end for the
// tree was held. If it cannot the tree can be worked on all the same.
func (s *Session) resumeCommit(ctx context.Context) {
	if h := s.rec.Head(); h.Committing != "" {
		s.found.Committing = h.Committing
		s.upkeep.end(upkeepGrace) // it reads base
		if err := s.completeCommit(ctx, nil, nil, false); err != nil {
			s.o.Warn(fmt.Sprintf("the commit through %s is not finished yet: %v", h.Committing, err))
		}
	}
	if h := s.rec.Head(); !h.Retire || h.Committing != "" {
		return
	}
	held, err := s.drv.Holders(ctx)
	if err == nil && len(held) == 0 {
		err = s.commitThrough(ctx, CommitOptions{}, &Committed{})
	}
	if err != nil {
		s.o.Warn(fmt.Sprintf("the tree is not unmounted yet: %v", err))
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
	if err != nil || len(v.Layers) == 0 || s.owned(h) || h.Stands != nil {
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
