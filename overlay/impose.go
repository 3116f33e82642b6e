package overlay

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Inode flags of linux/fs.h that a tree shows and that can be set.
const (
	flagSync, flagImmutable, flagAppend, flagNodump = 0x8, 0x10, 0x20, 0x40
	flagNoatime, flagDirsync                        = 0x80, 0x10000

	flagsForbid  = flagImmutable | flagAppend
	flagsImposed = flagSync | flagNodump | flagNoatime | flagDirsync | flagsForbid
)

// A target is a name in a directory of base, or of a layer that is being made.
type target struct {
	dir  *os.File
	name string
}

// path names it so that no link in its directory's own path is followed.
func (t target) path() string { return fdName(t.dir) + "/" + t.name }

func (t target) failed(op string, err error) error {
	return &fs.PathError{Op: op, Path: t.name, Err: err}
}

// impose gives what t names exactly the attributes of from, and takes away those
// that from does not have. Killed halfway it can be repeated.
func (t target) impose(from *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: from.Name(), Err: err}
	}
	want, err := xattrs(from)
	if err != nil {
		return err
	}
	link := st.Mode&unix.S_IFMT == unix.S_IFLNK
	t.allow() //nolint:errcheck // what still forbids is told by what follows
	if err := unix.Lchown(t.path(), int(st.Uid), int(st.Gid)); err != nil {
		return t.failed("lchown", err)
	}
	if err := t.dropXattrs(want); err != nil {
		return err
	}
	if !link {
		if err := unix.Fchmodat(int(t.dir.Fd()), t.name, st.Mode&0o7777, 0); err != nil {
			return t.failed("chmod", err)
		}
	}
	for name, value := range want { // after chown, which takes capabilities away
		if err := unix.Lsetxattr(t.path(), name, value, 0); err != nil {
			return t.failed("setxattr "+name, err)
		}
	}
	times := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(int(t.dir.Fd()), t.name, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return t.failed("utimensat", err)
	}
	return t.setFlags(fdName(from), ^0)
}

// dropXattrs removes the attributes that are not wanted, overlayfs's own among
// them.
func (t target) dropXattrs(want map[string][]byte) error {
	names, err := t.xattrNames()
	if err != nil {
		return t.failed("listxattr", err)
	}
	for _, n := range names {
		if _, ok := want[n]; ok {
			continue
		}
		if err := t.removeXattr(n); err != nil {
			return err
		}
	}
	return nil
}

// removeXattr takes an attribute away, if it is there.
func (t target) removeXattr(name string) error {
	if err := unix.Lremovexattr(t.path(), name); err != nil && !errors.Is(err, unix.ENODATA) {
		return t.failed("removexattr "+name, err)
	}
	return nil
}

// xattrNames lists the attributes of what t names, a link too.
func (t target) xattrNames() ([]string, error) {
	buf := make([]byte, 512)
	for {
		n, err := t.listXattr(buf)
		switch {
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 4*len(buf))
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		case err != nil:
			return nil, err
		case n == 0:
			return nil, nil
		default:
			return strings.Split(string(bytes.TrimSuffix(buf[:n], []byte{0})), "\x00"), nil
		}
	}
}

// allow takes the flags away that forbid every change.
func (t target) allow() error { return t.setFlags("", ^flagsForbid) }

// setFlags gives t, if it is a file or a directory, the flags of the file at path
// that are in mask; or, without path, takes away its own that are not. A
// filesystem without flags has none.
func (t target) setFlags(path string, mask int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(t.dir.Fd()), t.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return t.failed("stat", err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil // to open a device may do anything
	}
	f, err := openAt(int(t.dir.Fd()), t.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	now, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	want := now
	if path != "" {
		from, err := os.Open(path)
		if err != nil {
			return err
		}
		defer from.Close() //nolint:errcheck // nothing was written
		if want, err = unix.IoctlGetInt(int(from.Fd()), unix.FS_IOC_GETFLAGS); err != nil {
			return nil //nolint:nilerr // see above
		}
	}
	want = now&^flagsImposed | want&flagsImposed&mask
	if want == now {
		return nil
	}
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, want); err != nil {
		return t.failed("set flags", err)
	}
	return nil
}

// replica makes t, which must not exist, a copy of e: a file's bytes, a link's
// target, a device's number, and all attributes.
func (t target) replica(e *entry) error {
	dir := int(t.dir.Fd())
	var err error
	switch fileType(e) {
	case snapshot.TypeFile:
		err = t.copyFile(e)
	case snapshot.TypeSymlink:
		var to string
		if to, err = readlink(e.f); err == nil {
			err = unix.Symlinkat(to, dir, t.name)
		}
	default:
		err = unix.Mknodat(dir, t.name, e.st.Mode&unix.S_IFMT|0o600, int(e.st.Rdev))
	}
	if err != nil {
		return t.failed("copy", err)
	}
	return t.impose(e.f)
}

func (t target) copyFile(e *entry) error {
	from, err := e.read()
	if err != nil {
		return err
	}
	to, err := createAt(t.dir, t.name, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyBytes(context.Background(), from, to), to.Close())
}

// remove takes away whatever t names, with all below it.
func (t target) remove() error {
	err := t.unlink(0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err := t.empty(); err != nil {
		return err
	}
	return t.unlink(unix.AT_REMOVEDIR)
}

// unlink removes one name, by force where flags forbid it.
func (t target) unlink(flags int) error {
	err := unix.Unlinkat(int(t.dir.Fd()), t.name, flags)
	if errors.Is(err, unix.EPERM) {
		t.force()
		err = unix.Unlinkat(int(t.dir.Fd()), t.name, flags)
	}
	if err != nil {
		return t.failed("unlink", err)
	}
	return nil
}

// force takes away the flags that keep t from being removed or replaced. What it
// cannot do is told by what is then tried.
func (t target) force() {
	target{t.dir, "."}.allow() //nolint:errcheck // see above
	t.allow()                  //nolint:errcheck // see above
}

// empty removes everything in the directory t.
func (t target) empty() error {
	d, err := openAt(int(t.dir.Fd()), t.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer d.Close() //nolint:errcheck // read only
	names, err := d.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := (target{d, n}).remove(); err != nil {
			return err
		}
	}
	return nil
}
