package fallback

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Inode flags that chattr(1) sets and a restore puts back: S i a d A
// (linux/fs.h). Others are the filesystem's own affair.
const (
	flagImmutable = 0x10
	flagAppend    = 0x20
	lockFlags     = flagImmutable | flagAppend
	keptFlags     = lockFlags | 0x8 | 0x40 | 0x80
)

// readFlags reads the inode flags of an open file; 0 where there are none.
func readFlags(fd int, path string) (uint32, error) {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	switch {
	case errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		return 0, nil
	case err != nil:
		return 0, sysError("ioctl FS_IOC_GETFLAGS", path, err)
	}
	return flags & keptFlags, nil
}

// writeFlags sets the kept flags of a file or directory, which may be open
// with O_PATH only.
func writeFlags(fd int, path string, want uint32) (err error) {
	if _, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); !errors.Is(err, unix.EBADF) {
		return setFlags(fd, path, want)
	}
	f, err := unix.Open(procPath(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if want == 0 && errors.Is(err, unix.EACCES) {
			return nil // without root, and nothing to set
		}
		return sysError("open", path, err)
	}
	defer closing(f, &err)
	return setFlags(f, path, want)
}

func setFlags(f int, path string, want uint32) error {
	have, err := readFlags(f, path)
	if err != nil || have == want {
		return err
	}
	all, err := unix.IoctlGetUint32(f, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return sysError("ioctl FS_IOC_GETFLAGS", path, err)
	}
	err = unix.IoctlSetPointerInt(f, unix.FS_IOC_SETFLAGS, int(all&^keptFlags|want))
	if err != nil && !forbidden(err) {
		return sysError("ioctl FS_IOC_SETFLAGS", path, err)
	}
	return nil
}

// dress gives an entry, open as fd (O_PATH does), the attributes of e. Only
// what differs is written. The order matters: flags forbid all else, a change
// of owner takes setuid bits and capabilities away, a change of mode rewrites
// the ACL's mask, and everything may touch the times.
//
// Of a symbolic link dir and name are its place, since not every call takes a
// descriptor of one. What was, if not nil, is what the entry was before we
// touched it: then only where that differs from e the costly part is done.
func dress(fd, dir int, name, path string, was, e *entry) error {
	st, err := statAt(fd, "", path)
	if err != nil {
		return err
	}
	if st.locked {
		if err := writeFlags(fd, path, 0); err != nil {
			return err
		}
	}
	if st.uid != e.uid || st.gid != e.gid {
		err := unix.Fchownat(fd, "", int(e.uid), int(e.gid), unix.AT_EMPTY_PATH)
		if err != nil && !forbidden(err) {
			return sysError("fchownat", path, err)
		}
	}
	at := spotOf(fd)
	if e.kind() == unix.S_IFLNK {
		at = spotIn(dir, name)
	}
	if was == nil || !was.sameOwnership(e) || st.mode != e.mode {
		if err := dressMode(at, path, e); err != nil {
			return err
		}
	}
	if err := setTime(at, path, e.mtime); err != nil {
		return err
	}
	kept := was != nil && !st.locked && was.flags == e.flags && e.flags&lockFlags == 0
	if !kept && (e.isDir() || e.isRegular()) { // a new one may have inherited some
		return writeFlags(fd, path, e.flags)
	}
	return nil
}

// dressMode sets mode and extended attributes. Without root one must be allowed
// to write to a file to give it a user attribute (xattr(7)).
func dressMode(at spot, path string, e *entry) error {
	if at.link {
		return writeXattrs(at, path, e.xattrs)
	}
	mode := e.mode & 0o7777
	if isUnprivileged() && mode&0o600 != 0o600 {
		if err := unix.Chmod(at.at, mode|0o600); err != nil {
			return sysError("chmod", path, err)
		}
		if err := writeXattrs(at, path, e.xattrs); err != nil {
			return err
		}
		return sysErrorOrNil("chmod", path, unix.Chmod(at.at, mode))
	}
	if err := unix.Chmod(at.at, mode); err != nil {
		return sysError("chmod", path, err)
	}
	return writeXattrs(at, path, e.xattrs)
}

func setTime(at spot, path string, t stamp) error {
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: t.sec, Nsec: int64(t.nsec)}}
	flags := 0
	if at.link {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at.at, times, flags); err != nil {
		return sysError("utimensat", path, err)
	}
	return nil
}

// make creates an entry in a directory of ours, without its flags, and with
// its bytes if it is a file. A directory stays open to us until it is dressed.
func (d *Driver) make(dir int, name, path string, e *entry) (err error) {
	switch e.kind() {
	case unix.S_IFDIR:
		return wrapMade("mkdirat", path, unix.Mkdirat(dir, name, 0o700))
	case unix.S_IFLNK:
		if err := unix.Symlinkat(e.target, dir, name); err != nil {
			return sysError("symlinkat", path, err)
		}
	case unix.S_IFREG:
		return d.makeFile(dir, name, path, e)
	default:
		if err := unix.Mknodat(dir, name, e.kind()|0o600, int(e.rdev)); err != nil {
			return sysError("mknodat", path, err)
		}
	}
	return dressAt(dir, name, path, e)
}

func wrapMade(op, path string, err error) error {
	if err != nil {
		return sysError(op, path, err)
	}
	return nil
}

func (d *Driver) makeFile(dir int, name, path string, e *entry) (err error) {
	fd, err := openAt(dir, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return sysError("openat", path, err)
	}
	defer closing(fd, &err)
	if err := d.store.get(e.obj, e.size, fd, func(n int64) { d.bar.step("restore", 0, n) }); err != nil {
		return fmt.Errorf("restore %q: %w", path, err)
	}
	return dress(fd, dir, name, path, nil, unlocked(e))
}

// dressAt dresses an entry by its name in a directory of ours.
func dressAt(dir int, name, path string, e *entry) (err error) {
	fd, err := openAt(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return sysError("openat", path, err)
	}
	defer closing(fd, &err)
	return dress(fd, dir, name, path, nil, unlocked(e))
}

// unlocked is e without the flags that would keep it from being moved; they
// are set at the end, in its place.
func unlocked(e *entry) *entry {
	u := *e
	u.flags &^= lockFlags
	return &u
}
