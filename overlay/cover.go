package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// A cover is what the mounted view has above base, in one directory. It is
// needed where layers are committed that this view does not stand on: copies of
// what a pinned layer holds ("Sealing" in docs/design.md). What they give to base
// the pinned layer hides, and goes on hiding once base has it, for overlayfs
// leaves a whiteout behind when that is removed. But what has been removed since
// it was copied would come back into view. So each name is looked up here when
// base has got it, and taken back if it shows.
//
// The directories are held open: wherever somebody moves them they are the ones.
type cover struct {
	dirs  []*os.File // O_PATH, newest layer first
	shown *os.File   // the same directory in the mounted view; nil if it has gone
}

// covering is the cover of a commit of layers; nil if the view stands on all of
// them. CodeTreeBusy if it reads base under other names, so that it must be shown
// anew first.
func (d *Driver) covering(ctx context.Context, r *reach, layers []snapshot.LayerID) (v *cover, err error) {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return nil, err
	}
	units, err := d.standsOn(open)
	if err != nil {
		return nil, err
	}
	left := setOf(layers)
	for _, u := range units {
		for _, id := range u.of {
			delete(left, id)
		}
	}
	if len(left) == 0 {
		return nil, nil
	}
	v = &cover{}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	top := stood{unit{d.dir(open, ""), 1}, []snapshot.LayerID{open}}
	committed := setOf(layers)
	for _, u := range append([]stood{top}, units...) {
		f, err := d.openUnit(u.unit)
		if err != nil {
			return v, err
		}
		if f == nil {
			continue
		}
		v.dirs = append(v.dirs, f)
		if committed[u.of[0]] {
			continue // Settle has looked at it
		}
		if moved, err := redirected(ctx, f, r.joined); err != nil || moved {
			return v, errors.Join(err, d.mustShowAnew())
		}
	}
	v.shown, err = d.openShown()
	return v, err
}

func setOf(ids []snapshot.LayerID) map[snapshot.LayerID]bool {
	set := map[snapshot.LayerID]bool{}
	for _, id := range ids {
		set[id] = true
	}
	return set
}

func (v *cover) close() {
	if v == nil {
		return
	}
	for _, f := range append(v.dirs, v.shown) {
		if f != nil {
			f.Close() //nolint:errcheck // read only
		}
	}
}

// hides tells whether the view shows nothing of what base has by a name. A
// directory above it of which base shows through is in merged, which the caller
// closes: then what is in it has to be looked at.
func (v *cover) hides(name string) (hidden, opaque bool, merged *cover, err error) {
	merged = &cover{}
	defer func() {
		if err != nil || hidden || len(merged.dirs) == 0 {
			merged.close()
			merged = nil
		}
	}()
	for _, d := range v.dirs {
		f, st, err := openEntry(d, name)
		if err != nil {
			return false, false, merged, err
		}
		if f == nil {
			continue
		}
		merged.dirs = append(merged.dirs, f)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return true, len(merged.dirs) > 1, merged, nil
		}
		o, err := xattr(f, private+"opaque")
		if err != nil || string(o) == "y" {
			return true, true, merged, err
		}
	}
	if v.shown != nil && len(merged.dirs) > 0 {
		merged.shown, err = openDirIn(v.shown, name)
	}
	return false, false, merged, err
}

// settle waits until nobody removes anything in the directory who has looked
// below for it before base had it: a removal holds the directory's lock from
// before it looks (vfs_unlink, then ovl_do_remove; rename likewise). One of a name
// that is not there takes that lock, and does nothing.
func (v *cover) settle() error {
	if v.shown == nil {
		return nil
	}
	err := unix.Unlinkat(int(v.shown.Fd()), ".deployx-"+uuid.NewString(), 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &fs.PathError{Op: "unlink", Path: v.shown.Name(), Err: err}
}

// within puts a file into base by put, unless it would show there.
func (c *commit) within(v *cover, to target, put func() error) error {
	if v == nil {
		return put()
	}
	hidden, _, merged, err := v.hides(to.name)
	merged.close()
	if err != nil || !hidden {
		c.lost = true
		return err
	}
	if err := put(); err != nil {
		return err
	}
	crash.Point("overlay.commit.covered")
	if err := v.settle(); err != nil {
		return err
	}
	hidden, _, merged, err = v.hides(to.name)
	merged.close()
	if err == nil && !hidden {
		c.lost = true
		return to.remove()
	}
	return err
}

// below is the cover of a directory that base has, or is to get if it is fresh:
// nil if nothing in it can show. ok is false if the view has no such directory, or
// would show the fresh one: then it has been changed since it was copied.
func (c *commit) below(v *cover, name string, fresh bool) (sub *cover, ok bool, err error) {
	if v == nil {
		return nil, true, nil
	}
	hidden, opaque, merged, err := v.hides(name)
	if ok = err == nil && (opaque || !hidden && merged != nil && !fresh); !ok {
		merged.close()
		c.lost, merged = true, nil
	}
	return merged, ok, err
}
