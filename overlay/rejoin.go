package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// Where the kernel keeps no index (see splitting.go), names that came apart are linked
// again, through the mount, as a program would do it: a name by another one, renamed
// over. The directory's time is put back.

var _ snapshot.Rejoiner = (*Driver)(nil)

// Rejoin makes one file of names that the open layer has parted, where none of them
// tells another story: those that were changed were changed alike, and those that were
// not follow. It tells whether it did so of any. See snapshot.Rejoiner.
func (d *Driver) Rejoin(ctx context.Context, v snapshot.View) (some bool, err error) {
	c, err := d.comparison(ctx, v.Layers, []snapshot.LayerID{v.Open})
	if err != nil {
		return false, err
	}
	defer c.after.close()
	groups, err := c.findGroups()
	if err != nil {
		return false, err
	}
	root, err := d.openShown()
	if err != nil {
		return false, err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	for _, g := range groups {
		if g.together() {
			continue
		}
		to, others, err := c.alike(g)
		if err != nil {
			return some, err
		}
		for _, path := range others {
			err := d.relink(c, root, v.Open, to, path)
			if err != nil && !errors.Is(err, errOther) {
				return some, err
			}
			some = some || err == nil
		}
	}
	return some, nil
}

// alike finds the name that the others of a group are to follow, if those that were
// changed are alike but for the time: the one that was changed last.
func (c *comparison) alike(g *group) (to string, others []string, err error) {
	var last *entry
	defer func() { last.close() }()
	for _, path := range slices.Sorted(maps.Keys(g.copied)) {
		e, err := c.after.resolve(path, true)
		if e == nil || err != nil {
			return "", nil, err
		}
		if last != nil {
			same, err := sameContent(last, e)
			if err == nil && same {
				same, err = sameAttributes(last, e, false)
			}
			if err != nil || !same {
				e.close()
				return "", nil, err
			}
			if e.st.Mtim.Nano() <= last.st.Mtim.Nano() {
				e.close()
				continue
			}
		}
		last.close()
		last, to = e, path
	}
	for path, is := range g.copied {
		if is != g.copied[to] {
			others = append(others, path)
		}
	}
	return to, append(others, g.left...), nil
}

// errOther says that a name is not what it was when it was looked at, or protected.
var errOther = errors.New("somebody else has changed it")

// relink makes path another name of to. Both are looked at through the mount before.
func (d *Driver) relink(c *comparison, root *os.File, open snapshot.LayerID, to, path string) error {
	from, err := c.shownAs(root, to, nil)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // O_PATH
	dir, err := openBelow(root, filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // read only
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: dir.Name(), Err: err}
	}
	l := relinking{tmp: ".deployx-" + string(snapshot.NewLayerID()), dir: filepath.Dir(path), mtime: st.Mtim}
	if err := l.note(d.relinkFile(open)); err != nil {
		return err
	}
	crash.Point("overlay.relink.noted")
	if err = unix.Linkat(unix.AT_FDCWD, fdName(from), int(dir.Fd()), l.tmp, unix.AT_SYMLINK_FOLLOW); err == nil {
		crash.Point("overlay.relink.linked")
		var old *os.File
		if old, err = c.shownAs(root, path, lease); err == nil { // as late as can be
			err = unix.Renameat(int(dir.Fd()), l.tmp, int(dir.Fd()), filepath.Base(path))
			old.Close() //nolint:errcheck // the lease goes with it
		}
	}
	crash.Point("overlay.relink.renamed")
	if errors.Is(err, unix.EPERM) {
		err = errOther
	} else if err != nil && !errors.Is(err, errOther) {
		err = &os.LinkError{Op: "link", Old: to, New: path, Err: err}
	}
	if e := d.endRelink(open, dir, l); e != nil {
		return e
	}
	return err
}

// lease opens f, a regular file, anew, while nobody has it open for writing: the kernel
// has who opens it so wait until that is closed (fcntl(2), F_SETLEASE). He goes on with
// the file that he found, so it is not to be kept for long.
func lease(f *os.File) (*os.File, error) {
	r, err := openAt(unix.AT_FDCWD, fdName(f), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(r.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		r.Close()            //nolint:errcheck // read only
		return nil, errOther // or leases cannot be had, and it is not known
	}
	return r, nil
}

// shownAs opens what the tree shows at path, if that is what the layers have there; by
// a lease, if that is given.
func (c *comparison) shownAs(root *os.File, path string, lease func(*os.File) (*os.File, error)) (*os.File, error) {
	e, err := c.after.resolve(path, false)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, errOther
	}
	defer e.close()
	f, err := openBelow(root, path, unix.O_PATH)
	if missing(err) {
		return nil, errOther
	}
	if err != nil {
		return nil, err
	}
	if lease != nil {
		leased, err := lease(f)
		f.Close() //nolint:errcheck // O_PATH
		if err != nil {
			return nil, err
		}
		f = leased
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "fstat", Path: path, Err: err}, f.Close())
	}
	if st.Mode != e.st.Mode || st.Size != e.st.Size || st.Mtim != e.st.Mtim || st.Uid != e.st.Uid || st.Gid != e.st.Gid {
		return nil, errors.Join(errOther, f.Close())
	}
	return f, nil
}

// A relinking is noted while a name of ours may be in the tree.
type relinking struct {
	tmp, dir string // dir is a path of the tree
	mtime    unix.Timespec
}

// relinkFile is a symbolic link: as a name does, what it says lasts with what comes
// after it.
func (d *Driver) relinkFile(open snapshot.LayerID) string { return d.dir(open, "relink") }

func (l relinking) note(file string) error {
	return os.Symlink(fmt.Sprintf("%d.%d %s %s", l.mtime.Sec, l.mtime.Nsec, l.tmp, l.dir), file)
}

// endRelink takes our name away, if it is there still, and puts back the time of the
// directory.
func (d *Driver) endRelink(open snapshot.LayerID, dir *os.File, l relinking) error {
	err := unix.Unlinkat(int(dir.Fd()), l.tmp, 0)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "unlink", Path: filepath.Join(l.dir, l.tmp), Err: err}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, l.mtime}
	err = unix.UtimesNanoAt(int(dir.Fd()), "", times, unix.AT_EMPTY_PATH)
	if err != nil && !errors.Is(err, unix.EPERM) { // of a directory that is immutable
		return &fs.PathError{Op: "utimensat", Path: l.dir, Err: err}
	}
	return os.Remove(d.relinkFile(open))
}

// dropRelink ends what was cut off, in the layer that is shown.
func (d *Driver) dropRelink(open snapshot.LayerID) error {
	s, err := os.Readlink(d.relinkFile(open))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var l relinking
	head, dir, _ := strings.Cut(s, " .deployx-")
	if _, err := fmt.Sscanf(head, "%d.%d", &l.mtime.Sec, &l.mtime.Nsec); err != nil {
		return fmt.Errorf("%s: %q: %w", d.relinkFile(open), s, err)
	}
	l.tmp, l.dir, _ = strings.Cut(".deployx-"+dir, " ")
	root, err := d.openShown()
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	f, err := openBelow(root, l.dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if missing(err) {
		return os.Remove(d.relinkFile(open)) // it went, and our name with it
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	return d.endRelink(open, f, l)
}
