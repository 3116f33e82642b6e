package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A layer is a directory with
//
//	u/  the upper while the layer is open
//	w/  overlayfs's work directory
//	s/  what the layer holds once it is sealed (subtree layout only)
//
// In the subtree layout the overlay covers the tree's parent, u/ is made empty,
// and sealing is one rename of u/NAME to s/NAME: u/ is then never used as a
// lower, of which the kernel would complain in its log at every swap.

func (d *Driver) dir(id snapshot.LayerID, sub string) string {
	return filepath.Join(d.layers, string(id), sub)
}

// base is the directory that stands below all layers. The plain layout reaches
// it through a private bind mount, for the tree's own path is covered.
func (d *Driver) base() string {
	if d.name == "" {
		return filepath.Join(d.layers, "base")
	}
	return filepath.Dir(d.tree)
}

// create makes an open layer above v.Layers, or finds it. One that was sealed
// for a swap which then did not take place is opened again.
func (d *Driver) create(v snapshot.View) error {
	if err := os.Mkdir(d.dir(v.Open, ""), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, sub := range []string{"w", "s"} {
		if err := os.Mkdir(d.dir(v.Open, sub), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if _, err := os.Lstat(d.dir(v.Open, "u")); err == nil {
		_, err := d.unseal([]snapshot.LayerID{v.Open})
		return err
	}
	if d.name != "" {
		return os.Mkdir(d.dir(v.Open, "u"), 0o755)
	}
	aside := d.dir(v.Open, "u.new")
	if err := os.Mkdir(aside, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := d.dressRoot(v, aside); err != nil {
		return err
	}
	return os.Rename(aside, d.dir(v.Open, "u"))
}

// dressRoot gives u/ the attributes of the tree's root, for in the plain
// layout they are what the tree shows.
func (d *Driver) dressRoot(v snapshot.View, upper string) error {
	from, err := d.openRootBelow(v)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // read only
	to, err := os.Open(upper)
	if err != nil {
		return err
	}
	return errors.Join(copyAttributes(from, to), to.Close())
}

// openRootBelow opens the root of the newest layer below v.Open. It serves the
// plain layout.
func (d *Driver) openRootBelow(v snapshot.View) (*os.File, error) {
	if n := len(v.Layers); n > 0 {
		return os.Open(d.dir(v.Layers[n-1], "u"))
	}
	bound, err := d.baseBound()
	if err != nil {
		return nil, err
	}
	if d.name == "" && !bound {
		return os.Open(d.tree)
	}
	return os.Open(d.base())
}

// copyAttributes gives a file that was just made, open for reading at least, the
// attributes of another (O_PATH is enough). What it has is left: each change of an
// inode costs more than the look.
func copyAttributes(from, to *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: from.Name(), Err: err}
	}
	return copyAttributesOf(from, &st, to)
}

// copyAttributesOf is copyAttributes of a file that has been looked at.
func copyAttributesOf(from *os.File, st *unix.Stat_t, to *os.File) error {
	var have unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &have); err != nil {
		return &fs.PathError{Op: "fstat", Path: to.Name(), Err: err}
	}
	owned := st.Uid == have.Uid && st.Gid == have.Gid
	if !owned {
		if err := unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid)); err != nil {
			return &fs.PathError{Op: "fchown", Path: to.Name(), Err: err}
		}
	}
	if !owned || st.Mode != have.Mode { // chown(2) takes bits away
		if err := unix.Fchmod(int(to.Fd()), st.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "fchmod", Path: to.Name(), Err: err}
		}
	}
	attrs, err := xattrs(from)
	if err != nil {
		return err
	}
	for name, value := range attrs {
		if err := unix.Fsetxattr(int(to.Fd()), name, value, 0); err != nil {
			return &fs.PathError{Op: "setxattr " + name, Path: to.Name(), Err: err}
		}
	}
	times := [2]unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(int(to.Fd()), "", times[:], unix.AT_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "utimensat", Path: to.Name(), Err: err}
	}
	copyFlags(from, to)
	return nil
}

// copyFlags carries the inode flags that overlayfs carries (OVL_COPY_I_FLAGS,
// and nodump). A file system that has none has none to carry.
func copyFlags(from, to *os.File) {
	const (
		sync, nodump, noatime, dirsync = 0x8, 0x40, 0x80, 0x10000 // FS_*_FL of linux/fs.h
		carried                        = sync | nodump | noatime | dirsync
	)
	have, err := unix.IoctlGetInt(int(from.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.EBADF) { // O_PATH
		r, e := openAt(unix.AT_FDCWD, fdName(from), unix.O_RDONLY)
		if e != nil {
			return
		}
		defer r.Close() //nolint:errcheck // read only
		have, err = unix.IoctlGetInt(int(r.Fd()), unix.FS_IOC_GETFLAGS)
	}
	if err != nil || have&carried == 0 {
		return
	}
	if now, err := unix.IoctlGetInt(int(to.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		unix.IoctlSetPointerInt(int(to.Fd()), unix.FS_IOC_SETFLAGS, now|have&carried) //nolint:errcheck // see above
	}
}

// Dirty looks at the open layer's root: in the subtree layout anything in u/
// is a change, the tree's own attributes included (a change of them copies the
// root up).
func (d *Driver) Dirty(_ context.Context, v snapshot.View) (bool, error) {
	if d.name != "" {
		for _, sub := range []string{"u", "s"} {
			if empty, err := emptyDir(d.dir(v.Open, sub)); err != nil || !empty {
				return !empty, err
			}
		}
		return false, nil
	}
	empty, err := emptyDir(d.dir(v.Open, "u"))
	if err != nil || !empty {
		return !empty, err
	}
	return d.rootChanged(v)
}

func (d *Driver) rootChanged(v snapshot.View) (bool, error) {
	below, err := d.openRootBelow(v)
	if err != nil {
		return false, err
	}
	defer below.Close() //nolint:errcheck // read only
	upper, err := os.Open(d.dir(v.Open, "u"))
	if err != nil {
		return false, err
	}
	defer upper.Close() //nolint:errcheck // read only
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(int(below.Fd()), &a), unix.Fstat(int(upper.Fd()), &b)); err != nil {
		return false, fmt.Errorf("fstat root: %w", err)
	}
	if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Mtim != b.Mtim {
		return true, nil
	}
	x, err := xattrs(below)
	if err != nil {
		return false, err
	}
	y, err := xattrs(upper)
	return !sameXattrs(x, y), err
}

func emptyDir(path string) (bool, error) {
	f, err := openAt(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	names, err := f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return len(names) == 0, errors.Join(err, f.Close())
}

// seal makes the layers of a view lowers: what is still in u/ goes to s/. It
// can be repeated. The kernel goes on writing through the dentries it has, so
// a live mount does not notice.
func (d *Driver) seal(ids []snapshot.LayerID) (sealed []snapshot.LayerID, err error) {
	return d.moveContent(ids, "u", "s")
}

// unseal takes seal back, for a swap that did not take place.
func (d *Driver) unseal(ids []snapshot.LayerID) (opened []snapshot.LayerID, err error) {
	return d.moveContent(ids, "s", "u")
}

// moveContent renames, newest layer first, until it finds one with nothing to
// move: it and those before it are where they belong.
func (d *Driver) moveContent(ids []snapshot.LayerID, from, to string) (moved []snapshot.LayerID, err error) {
	if d.name == "" {
		return nil, nil
	}
	for _, id := range slices.Backward(ids) {
		err := os.Rename(filepath.Join(d.dir(id, from), d.name), filepath.Join(d.dir(id, to), d.name))
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return moved, err
		}
		moved = append(moved, id)
	}
	return moved, nil
}

// Discard moves the layer to the trash; EmptyTrash gives the space back, and
// that of what was merged from it.
func (d *Driver) Discard(ctx context.Context, id snapshot.LayerID) error {
	if used, err := d.inUse(ctx, id); err != nil || used {
		if used {
			err = &snapshot.Error{Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("the mounted view stands on layer %s", id)}
		}
		return err
	}
	return errors.Join(d.forgetReady(id), d.toTrash(d.dir(id, "")))
}

// inUse tells whether the mount on the tree stands on a layer, itself or in a
// run: the list of what it stands on is kept beside its open layer.
func (d *Driver) inUse(ctx context.Context, id snapshot.LayerID) (bool, error) {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return false, err
	}
	if open == id || d.owes(id, open) {
		return true, nil
	}
	under, err := d.standing.under(d, open)
	return under[id], err
}

// noteBelow writes that list.
func (d *Driver) noteBelow(open snapshot.LayerID, units []unit) error {
	d.standing.forget()
	var b bytes.Buffer
	for _, u := range units {
		fmt.Fprintln(&b, filepath.Base(u.dir))
	}
	return os.WriteFile(d.dir(open, "below"), b.Bytes(), 0o600)
}

func (d *Driver) toTrash(dir string) error {
	to := filepath.Join(d.layers, "trash", fmt.Sprintf("%s.%d", filepath.Base(dir), time.Now().UnixNano()))
	err := os.Rename(dir, to)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// EmptyTrash removes discarded layers and the runs that were merged from them.
// It may be called at any time.
func (d *Driver) EmptyTrash(ctx context.Context) error {
	if err := d.sweepRuns(ctx); err != nil {
		return err
	}
	trash := filepath.Join(d.layers, "trash")
	names, err := os.ReadDir(trash)
	if err != nil {
		return err
	}
	for _, n := range names {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := removeForbidden(filepath.Join(trash, n.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeForbidden is os.RemoveAll of what chattr may have forbidden to remove: before
// Linux 5.15 overlayfs sets these flags on a layer's own files.
func removeForbidden(path string) error {
	err := os.RemoveAll(path)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	err = filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() && !e.Type().IsRegular() {
			return err
		}
		dir, err := openDir(filepath.Dir(name))
		if err != nil {
			return err
		}
		defer dir.Close() //nolint:errcheck // O_PATH
		return target{dir: dir, name: filepath.Base(name)}.allow()
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(path)
}

const layerIDLength = 36 // a UUID; "base", "stage" and "trash" are shorter

// Layers lists the layers on disk.
func (d *Driver) Layers(context.Context) ([]snapshot.LayerID, error) {
	names, err := os.ReadDir(d.layers)
	if err != nil {
		return nil, err
	}
	var ids []snapshot.LayerID
	for _, n := range names {
		if n.IsDir() && len(n.Name()) == layerIDLength {
			ids = append(ids, snapshot.LayerID(n.Name()))
		}
	}
	return ids, nil
}

// Usage walks the layer: its own files, not what it shares by hard links with
// a layer merged from it.
func (d *Driver) Usage(_ context.Context, id snapshot.LayerID) (snapshot.Usage, error) {
	var u snapshot.Usage
	err := filepath.WalkDir(d.dir(id, ""), func(_ string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if st, ok := statT(fi); ok {
			u.Bytes += st.Blocks * 512
		}
		u.Inodes++
		return nil
	})
	return u, err
}

func sameXattrs(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		w, ok := b[k]
		if !ok || !bytes.Equal(v, w) {
			return false
		}
	}
	return true
}
