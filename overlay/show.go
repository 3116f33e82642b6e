package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// idlePatience is how long Hide waits for readers by path.
const idlePatience = 10 * time.Millisecond

// Show swaps the mount on the tree for one of v. See snapshot.Driver.
func (d *Driver) Show(ctx context.Context, v snapshot.View) (t snapshot.Transition, err error) {
	defer d.leaveRest()
	shown, err := d.Shown(ctx)
	if err != nil {
		return t, err
	}
	if d.prove(shown); shown == v.Open {
		return t, d.stay(v.Open)
	}
	if shown, err = d.resume(ctx, v, shown); err != nil {
		return t, fmt.Errorf("carry what was written while a view was taken back: %w", err)
	}
	if shown == "" {
		raiseRedirectMax()
		err = d.below.close()
	} else if err = d.refuseHolders(ctx); err == nil {
		err = d.joinShown(ctx, v.Layers)
	}
	if err != nil {
		return t, err
	}
	if shown != "" {
		if left, err := d.leftBeneath(v.Open); left || err != nil {
			if err == nil {
				t.Swapped = true
				t.Late, err = d.takeOver(ctx, v, shown)
			}
			if err == nil {
				d.remember(v.Open)
			}
			return t, err
		}
	}
	undo, err := d.prepare(ctx, v, shown)
	if err != nil {
		return t, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, undo())
		}
	}()
	m, err := d.detached(v)
	if err != nil {
		return t, err
	}
	defer func() { m.Close() }() //nolint:errcheck // a mount handle
	if shown != "" {
		if err := d.refuseElsewhere(ctx); err != nil {
			return t, err
		}
	}
	m, sub, err := d.carry(m)
	if sub != nil {
		defer sub.close()
	}
	if err != nil {
		return t, err
	}
	crash.Point("overlay.built")
	t.Swapped = true
	if shown == "" {
		t.Stale = d.staleHolders(sub.ids)
		err = d.cover(m, sub)
	} else {
		t.Late, err = d.swap(ctx, m, sub, v, shown)
	}
	if err == nil {
		d.remember(v.Open)
	}
	return t, err
}

// cover shows m where a plain directory was seen. What is mounted below that is
// seen on m now, and goes from where nobody sees it any more.
func (d *Driver) cover(m *os.File, sub *submounts) error {
	if err := attach(m, d.tree, 0); err != nil || len(sub.list) == 0 {
		return err
	}
	crash.Point("overlay.covered")
	for _, s := range sub.list {
		if err := detach(s.f, s.Mountpoint); err != nil {
			return errors.Join(err, unmountTop(d.tree))
		}
	}
	return d.unveil()
}

// redirectMax is how long a path overlayfs may note when a directory, or a file
// with metacopy, is renamed; beyond it a rename fails with EXDEV, which rename(2)
// of a plain tree never does. The kernel's default is 256. More than this may
// not fit into an attribute on ext4, which has one block for all of them.
const redirectMax = 3072

const redirectMaxFile = "/sys/module/overlay/parameters/redirect_max"

// raiseRedirectMax sets the module's parameter, which holds for the whole host
// and hurts nobody. Where it cannot, doctor tells, and long renames fail.
func raiseRedirectMax() {
	if redirectLimit() < redirectMax {
		os.WriteFile(redirectMaxFile, fmt.Append(nil, redirectMax), 0) //nolint:errcheck // see above
	}
}

func redirectLimit() (n int) {
	b, err := os.ReadFile(redirectMaxFile)
	if err == nil {
		fmt.Sscan(string(b), &n) //nolint:errcheck // 0 is as good
	}
	return n
}

// remember spares the next Shown a look at mountinfo.
func (d *Driver) remember(open snapshot.LayerID) {
	if id, err := d.has.mountID(d.tree); err == nil {
		if d.has.uniqueID {
			d.noteView(id)
		}
		d.shown = shownMount{id, open}
	}
}

// prepare makes the directories of v. What it did is taken back by undo.
func (d *Driver) prepare(ctx context.Context, v snapshot.View, shown snapshot.LayerID) (undo func() error, err error) {
	undo = func() error { return nil }
	if d.name == "" {
		if undo, err = d.bindBase(); err != nil {
			return undo, err
		}
	}
	had := false // after a boot it may have what others have written
	if shown == "" {
		had, err = exists(d.dir(v.Open, "u"))
	}
	if err == nil && !d.ready.matches(v) {
		err = d.create(v)
	}
	if err != nil {
		return undo, errors.Join(fmt.Errorf("make layer: %w", err), undo())
	}
	crash.Point("overlay.created")
	sealed, err := d.seal(v.Layers)
	if err == nil && !d.ready.matches(v) {
		below := before(v.Layers, shown)
		err = d.room(ctx, below, d.mergeMost-(len(v.Layers)-len(below)))
	}
	unbind := undo
	if err == nil && had {
		err = d.loosenStale(v.Open, v.Layers)
	}
	undo = func() error {
		_, err := d.unseal(sealed)
		if !had {
			err = errors.Join(err, d.Discard(context.Background(), v.Open))
		}
		return errors.Join(err, unbind())
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("seal layer: %w", err), undo())
	}
	crash.Point("overlay.sealed")
	return undo, err
}

// before are the layers below the one that is shown open: those that nobody can
// write to any more.
func before(layers []snapshot.LayerID, shown snapshot.LayerID) []snapshot.LayerID {
	if i := slices.Index(layers, shown); i >= 0 {
		return layers[:i]
	}
	return layers
}

// bindBase keeps base within reach of the plain layout while the tree's path
// is covered. A tree that is not covered is bound anew: it may be another one.
func (d *Driver) bindBase() (undo func() error, err error) {
	none := func() error { return nil }
	base := d.base()
	if err := os.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return none, err
	}
	if bound, err := d.baseBound(); err != nil || bound {
		return none, err
	}
	if err := unix.Mount(d.tree, base, "", unix.MS_BIND, ""); err != nil {
		return none, &fs.PathError{Op: "bind base", Path: base, Err: err}
	}
	undo = func() error { return d.unbindBase() }
	if err := unix.Mount("", base, "", unix.MS_PRIVATE, ""); err != nil {
		return none, errors.Join(&fs.PathError{Op: "make private", Path: base, Err: err}, undo())
	}
	return undo, nil
}

// baseBound tells whether base is what bindBase has bound. Else the tree itself is base.
func (d *Driver) baseBound() (bool, error) {
	at, err := mountID(d.base())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	of, e := mountID(d.layers)
	return at != of, errors.Join(err, e)
}

func (d *Driver) unbindBase() error {
	if d.name != "" {
		return nil
	}
	if bound, err := d.baseBound(); err != nil || !bound {
		return err
	}
	if err := unix.Unmount(d.base(), unix.UMOUNT_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "umount", Path: d.base(), Err: err}
	}
	return nil
}

// detached is the mount of v, showing the tree only. Its layers are sealed.
func (d *Driver) detached(v snapshot.View) (*os.File, error) {
	m, err := d.take(v)
	if m == nil && err == nil {
		m, err = d.build(v)
	}
	if err != nil || d.name == "" {
		return m, err
	}
	sub, err := d.has.part(m, d.name, d.stage())
	d.rest = append(d.rest, func() { m.Close() }) //nolint:errcheck // a mount handle
	return sub, err
}

// stage is where older kernels have a mount attached for a moment.
func (d *Driver) stage() string { return filepath.Join(d.layers, "stage") }

// build makes the superblock of v. It looks at nothing in the layers but their
// roots, so they need not be sealed yet.
func (d *Driver) build(v snapshot.View) (*os.File, error) {
	s := spec{source: sourcePrefix + string(v.Open), upper: d.dir(v.Open, "u"), work: d.dir(v.Open, "w")}
	units := d.units(v.Layers)
	s.lowers = d.lowers(units)
	if err := d.noteBelow(v.Open, units); err != nil {
		return nil, err
	}
	m, err := d.mount(s)
	if err != nil {
		return nil, fmt.Errorf("mount %d layers on %q: %w", len(s.lowers), d.tree, err)
	}
	if err := d.checkWritable(m); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// checkWritable refuses a mount that the kernel made read-only because it could
// not prepare the work directory, which it only tells its log.
func (d *Driver) checkWritable(m *os.File) error {
	var st, layers unix.Statfs_t
	if err := unix.Fstatfs(int(m.Fd()), &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: m.Name(), Err: err}
	}
	if st.Flags&unix.ST_RDONLY == 0 {
		return nil
	}
	cause := unix.EROFS
	if unix.Statfs(d.layers, &layers) == nil && layers.Flags&unix.ST_RDONLY == 0 {
		cause = unix.ENOSPC
	}
	return &fs.PathError{Op: "prepare layer", Path: d.layers, Err: cause}
}

// lowers are the directories to stack, newest first, base last.
func (d *Driver) lowers(units []unit) []string {
	var dirs []string
	for _, u := range units {
		dirs = append(dirs, filepath.Join(u.dir, d.sealedSub()))
	}
	return append(dirs, d.base())
}

// sealedSub is where a sealed layer, or a run of them, has what it holds.
func (d *Driver) sealedSub() string {
	if d.name == "" {
		return "u"
	}
	return "s"
}

// Hide unmounts what is ours on the tree. A plain unmount: the kernel refuses
// it while anybody holds the mount.
func (d *Driver) Hide(ctx context.Context) error {
	for {
		open, err := d.Shown(ctx)
		if err != nil {
			return err
		}
		if open == "" {
			d.gone.Wait()
			return errors.Join(d.below.close(), d.unbindBase(), clearStage(d.stage()), d.dropOld())
		}
		if err := d.refuseHolders(ctx); err != nil {
			return err
		}
		if err := d.refuseElsewhere(ctx); err != nil {
			return err
		}
		if err := d.hideTop(ctx); err != nil {
			return err
		}
	}
}

func (d *Driver) hideTop(ctx context.Context) error {
	sub, err := d.submountsNow()
	if err != nil {
		return err
	}
	defer sub.close()
	if len(sub.list) > 0 {
		return d.hideCarrying(ctx, sub)
	}
	return d.unmountIdle()
}

// unmountIdle retries while readers by path come and go.
func (d *Driver) unmountIdle() error {
	if err := unmountSoon(d.tree, idlePatience); err != nil {
		return d.busy(context.Background(), err)
	}
	return nil
}
