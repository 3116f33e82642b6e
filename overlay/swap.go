package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/mounts"
	"deployx/snapshot"
)

// freezePatience is how long a swap waits for writers that come and go by path. An
// open, a write and a close take microseconds, but whoever does it may have to wait
// for a processor. Nobody waits for the swap meanwhile but its caller: the new view is
// shown and takes writes, which have to be carried if the old one comes back.
const freezePatience = 2 * time.Second

// swap puts m in the place of the mount on the tree, and sees to it that nobody can
// write to the old one any more. If somebody can, the old one comes back.
func (d *Driver) swap(ctx context.Context, m *os.File, sub *submounts, v snapshot.View, old snapshot.LayerID) (late bool, err error) {
	clean, err := emptyOr(d.dir(old, "u"))
	if err != nil {
		return false, err
	}
	start, err := clockNow()
	if err != nil {
		return false, err
	}
	shown, dev, unknown := mounts.UniqueID(d.tree)
	back, err := openTree(unix.AT_FDCWD, d.tree, unix.OPEN_TREE_CLONE)
	if err != nil {
		return false, err
	}
	sub.close() // who unmounts one is not to find it busy
	idle, err := d.replaceTop(m, sub)
	if err != nil {
		err = errors.Join(err, d.uncovered(ctx, back))
		d.letGo(back)
		if shown, e := d.Shown(ctx); e == nil && shown == old {
			err = errors.Join(err, d.dropOld())
		}
		return false, err
	}
	crash.Point("overlay.swapped")
	if idle && unknown == nil && gone(shown, dev) {
		crash.Point("overlay.idle")
		d.rest = append(d.rest, func() { d.freezeLate(back) })
	} else {
		err = d.freezeNow(ctx, back, m, v, backNote{To: old, Below: v.Layers, Since: start})
		d.letGo(back)
	}
	if err != nil {
		return false, err
	}
	crash.Point("overlay.frozen")
	return d.endSwap(old) && clean, nil
}

// endSwap tells whether something was written to the old view. The new one is shown:
// nothing that fails from here on is a swap that failed.
func (d *Driver) endSwap(old snapshot.LayerID) (dirty bool) {
	clean, err := emptyOr(d.dir(old, "u"))
	unused, e := emptyOr(d.indexDir(old))
	tidy := func() {
		if err := errors.Join(err, e, os.RemoveAll(d.indexDir(old))); err != nil {
			d.merging.say("a view was shown, but the one before it could not be tidied up: " + err.Error())
		}
	}
	if unused {
		d.rest = append(d.rest, tidy)
	} else {
		tidy() // its links would count as names
	}
	return !clean
}

// freezeNow proves that nobody can write to the old view, of which back is a clone, or
// goes back to it.
func (d *Driver) freezeNow(ctx context.Context, back, m *os.File, v snapshot.View, note backNote) error {
	surprised, err := freezeSoon(back, d.freezePatience)
	if err != nil {
		return d.goBack(ctx, err, back, m, v, note)
	}
	if surprised {
		d.tellHidden(ctx, v, note)
	}
	if err := d.dropOld(); err != nil { // whoever comes next does it
		d.merging.say("the view before is still mounted: " + err.Error())
	}
	return nil
}

// freezeLate freezes the old view, of which back is the last mount, beside what comes
// next, and closes it: that waits for a disk, and the kernel has said already what it
// proves. Only who holds a clone of the old mount that is attached nowhere
// (open_tree(2), made between the look for holders and the swap) could still write
// there until then.
func (d *Driver) freezeLate(back *os.File) {
	if _, err := freezeSoon(back, freezePatience); err != nil {
		d.merging.say(fmt.Sprintf("somebody has a clone of a former mount of %q and may still write to what the tree showed then: %v", d.tree, err))
	}
	back.Close() //nolint:errcheck // a mount handle
}

// bringBack shows back, a clone of the old view, again.
func (d *Driver) bringBack(back *os.File) error {
	m, sub, err := d.carry(back)
	if sub != nil {
		defer sub.close()
	}
	if err == nil {
		_, err = d.replaceTop(m, sub)
	}
	if m != back {
		d.letGo(m)
	}
	if err == nil {
		err = d.dropOld()
	}
	return err
}

// replaceTop shows m instead of the mount on the tree. idle tells that nobody had that
// open.
func (d *Driver) replaceTop(m *os.File, sub *submounts) (idle bool, err error) {
	if d.has.beneath {
		err := attach(m, d.tree, moveMountBeneath)
		if err == nil {
			crash.Point("overlay.beneath")
			if err := sub.settle(m); err != nil {
				return false, errors.Join(err, sub.strip(m))
			}
			return d.takeTop()
		}
		if !errors.Is(err, unix.EINVAL) {
			return false, err
		}
		d.has.beneath = false
	}
	if err := sub.shelter(); err != nil {
		return false, err
	}
	if idle, err = d.takeTop(); err != nil {
		return false, err
	}
	crash.Point("overlay.gap")
	if err := attach(m, d.tree, 0); err != nil || len(sub.list) == 0 {
		return idle, err
	}
	return idle, d.unveil()
}

// uncovered shows back, a clone of the old view, if a swap that failed has left the
// tree without any: before Linux 6.5 the old one has gone by then.
func (d *Driver) uncovered(ctx context.Context, back *os.File) error {
	crash.Point("overlay.failed")
	if open, err := d.Shown(ctx); err != nil || open != "" {
		return err
	}
	m, sub, err := d.carry(back)
	if sub != nil {
		defer sub.close()
	}
	if err == nil {
		err = d.cover(m, sub)
	}
	if m != back {
		d.letGo(m)
	}
	return err
}

// takeTop takes away the mount on the tree. The kernel refuses that while anybody has
// it open, here or where it was propagated to (umount2(2), EBUSY); else it was idle.
// Readers by path may keep it busy for ever, so then it goes lazily. This is the one
// lazy unmount: the old top has been found without holders before, and freeze proves
// it after.
func (d *Driver) takeTop() (idle bool, err error) {
	if unix.Unmount(d.tree, unix.UMOUNT_NOFOLLOW) == nil {
		return true, nil
	}
	d.keepOld()
	return false, unmountTop(d.tree)
}

func unmountTop(tree string) error {
	if err := unix.Unmount(tree, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "umount", Path: tree, Err: err}
	}
	return nil
}

// freezeSoon tells whether it had to wait for a writer.
func freezeSoon(m *os.File, patience time.Duration) (surprised bool, err error) {
	err = whileBusy(patience, func() error {
		err := freeze(m)
		if errors.Is(err, unix.EBUSY) && !surprised {
			surprised = true
			crash.Point("overlay.surprised")
		}
		return err
	})
	return surprised, err
}

func emptyOr(dir string) (bool, error) {
	empty, err := emptyDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	return empty, err
}
