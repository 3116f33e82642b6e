package session

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// goInPlace is goTo for a tree that is pinned: the record moves first, with a
// note that the tree has still to be brought there, and the difference is then
// written through the shown mount. Killed in between, the next deployx finishes
// it; an error takes both back.
func (s *Session) goInPlace(ctx context.Context, from, to snapshot.Head, u *Undo, start time.Time, entries ...snapshot.Snapshot) error {
	v, err := s.pinnedView(from)
	if err != nil {
		return err
	}
	to.Open = from.Open
	to.Stands = &snapshot.Standing{Layers: v.Layers, From: from.Open}
	to.Restoring = &snapshot.Restoring{From: from.Snapshot}
	before := s.look()
	before.pinned, before.taken, before.hands = true, true, before.find()
	if err := s.commit(ctx, to, entries...); err != nil {
		return err
	}
	crash.Point("session.rolled")
	if err := s.restore(ctx, false); err != nil {
		err = noRoom(err)
		back := from
		back.Stands = to.Stands // the open layer has been written to
		back.Restoring = &snapshot.Restoring{From: to.Snapshot}
		err = errors.Join(err, s.move(back))
		return errors.Join(err, s.restore(ctx, true))
	}
	u.Duration, u.InPlace = time.Since(start), true
	u.Stale = before.stale(func() ([]snapshot.Change, error) { return s.changesOf(ctx, u.Dropped) })
	shown, err := s.drv.Shown(ctx)
	u.Verified = err == nil && shown == s.rec.Head().Open
	return err
}

// noRoom says of a restore that the disk was too full for what can be done about it.
func noRoom(err error) error {
	if snapshot.CodeOf(err) != snapshot.CodeNoSpace {
		return err
	}
	return &snapshot.Error{
		Code: snapshot.CodeNoSpace, Err: err,
		Msg:  "nothing has been undone: the tree is held, so each file is put beside the one that is there, and the disk is too full for that",
		Hint: "make room outside the tree and try again, or stop those who hold it (deployx status names them): a rollback then needs no room",
	}
}

// restore brings a pinned tree to where the record is already; again, if that was
// begun before. What others wrote in the meantime stays then, and is warned of.
func (s *Session) restore(ctx context.Context, again bool) error {
	h := s.rec.Head()
	if h.Restoring == nil {
		return nil
	}
	r, ok := s.drv.(snapshot.Restorer)
	if !ok {
		return fmt.Errorf("the driver %s cannot restore a pinned tree", s.drv.Name())
	}
	v, err := s.rec.View(h)
	if err != nil {
		return err
	}
	from, err := s.rec.Layers(h.Restoring.From)
	if err != nil {
		return err
	}
	to, err := s.rec.Layers(h.Snapshot)
	if err != nil {
		return err
	}
	var left []string
	err = s.sparing(func() (err error) {
		left, err = r.Restore(ctx, v, from, to, again)
		return err
	})
	if err != nil {
		return fmt.Errorf("restore in place: %w", err)
	}
	if len(left) > 0 {
		s.o.Warn(fmt.Sprintf("others wrote to these while the tree was put back; they stay as they are: %q", left))
	}
	crash.Point("session.restored")
	h.Restoring = nil
	return s.commit(ctx, h)
}
