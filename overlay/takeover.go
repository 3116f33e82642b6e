package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/mounts"
	"deployx/snapshot"
)

// Who was killed between the two steps of a swap has left the new mount beneath the
// old one. It is the one to show: a second mount of the same upper would be without an
// index, for the kernel keeps one for the first alone, and the first would stay.

// leftBeneath tells whether the next mount on the tree's path is one of open. It reads
// mountinfo only where the layer was made by another deployx.
func (d *Driver) leftBeneath(open snapshot.LayerID) (bool, error) {
	if d.ready.v.Open == open {
		return false, nil
	}
	if made, err := exists(d.dir(open, "u")); err != nil || !made {
		return false, err
	}
	top, err := mounts.ID(d.tree)
	if err != nil {
		return false, err
	}
	there, err := mountinfo.GetMounts(exactly(d.tree))
	if err != nil {
		return false, fmt.Errorf("read mountinfo: %w", err)
	}
	at := find(there, top)
	if at == nil {
		return false, nil
	}
	next := find(there, at.Parent)
	return next != nil && next.FSType == "overlay" && next.Source == sourcePrefix+string(open), nil
}

// takeOver ends a swap to v that was cut off with its mount beneath that of old. That
// has what was mounted below the tree then; what came and went since follows once it is
// seen, for no path leads there before.
func (d *Driver) takeOver(ctx context.Context, v snapshot.View, old snapshot.LayerID) (late bool, err error) {
	if err := errors.Join(d.refuseElsewhere(ctx), d.Fits(ctx, v.Layers)); err != nil {
		return false, err
	}
	clean, err := emptyOr(d.dir(old, "u"))
	if err != nil {
		return false, err
	}
	start, err := clockNow()
	if err != nil {
		return false, err
	}
	sub, err := d.submountsNow()
	if err != nil {
		return false, err
	}
	defer sub.close()
	if err := sub.clone(); err != nil {
		return false, err
	}
	back, err := openTree(unix.AT_FDCWD, d.tree, unix.OPEN_TREE_CLONE)
	if err != nil {
		return false, err
	}
	defer d.letGo(back)
	if _, err := d.takeTop(); err != nil {
		return false, err
	}
	d.shown = shownMount{}
	crash.Point("overlay.over")
	m, err := openTree(unix.AT_FDCWD, d.tree, 0)
	if err != nil {
		return false, err
	}
	defer d.letGo(m)
	err = d.catchUpOn(m, sub)
	err = errors.Join(err, d.freezeNow(ctx, back, m, v, backNote{To: old, Below: v.Layers, Since: start}))
	if err != nil {
		return false, err
	}
	return d.endSwap(old) && clean, nil
}

// catchUpOn mounts on m, which is shown, what was mounted below the tree before, and
// takes away the rest.
func (d *Driver) catchUpOn(m *os.File, was *submounts) (err error) {
	now, err := d.submountsNow()
	if err != nil {
		return err
	}
	defer now.close()
	for _, x := range now.without(was) {
		err = errors.Join(err, x.detach(m))
	}
	for _, x := range was.without(now) {
		err = errors.Join(err, x.attach(m))
	}
	return err
}
