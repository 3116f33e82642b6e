package fallback

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"golang.org/x/sys/unix"
)

// stat is what statx(2) says of one entry.
type stat struct {
	mode, uid, gid, nlink uint32
	ino, rdev, dev        uint64
	size, blocks          int64 // blocks of 512 bytes
	mtime, ctime, btime   stamp
	mount                 uint64 // 0 before Linux 5.8
	locked                bool   // immutable or append-only
}

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME | unix.STATX_MNT_ID

// statAt looks at name in the directory dirfd and follows no link; an empty
// name is dirfd itself. Path is for the error only.
func statAt(dirfd int, name, path string) (stat, error) {
	var x unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dirfd, name, flags, statMask, &x); err != nil {
		return stat{}, sysError("statx", path, err)
	}
	t := func(s unix.StatxTimestamp) stamp { return stamp{s.Sec, s.Nsec} }
	st := stat{
		mode: uint32(x.Mode), uid: x.Uid, gid: x.Gid, nlink: x.Nlink,
		ino: x.Ino, rdev: unix.Mkdev(x.Rdev_major, x.Rdev_minor), dev: unix.Mkdev(x.Dev_major, x.Dev_minor),
		size: int64(x.Size), blocks: int64(x.Blocks),
		mtime: t(x.Mtime), ctime: t(x.Ctime), btime: t(x.Btime),
	}
	st.locked = x.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0
	if x.Mask&unix.STATX_MNT_ID != 0 {
		st.mount = x.Mnt_id
	}
	return st, nil
}

func sysError(op, path string, err error) error {
	return &fs.PathError{Op: op, Path: path, Err: err}
}

// beneath is an open directory, and how what is below it is opened.
type beneath struct {
	fd    int
	steps bool // never by openat2(2), as before Linux 5.6
}

const pathMax = 4000 // PATH_MAX is 4096 with the terminating zero

// open opens path below the directory. No component may be a
// symbolic link and no mount is crossed, so whatever a hostile process swaps in
// while we walk, the result lies in the tree.
func (b beneath) open(path string, flags int) (int, error) {
	flags |= unix.O_CLOEXEC | unix.O_NOFOLLOW
	if len(path) < pathMax && !b.steps {
		how := unix.OpenHow{
			Flags:   uint64(flags),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
		}
		for {
			fd, err := unix.Openat2(b.fd, path, &how)
			switch {
			case err == nil:
				return fd, nil
			case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN): // a rename went on; openat2(2)
				continue
			case errors.Is(err, unix.ENOSYS):
			default:
				return -1, sysError("openat2", path, err)
			}
			break
		}
	}
	return openSteps(b.fd, path, flags)
}

// openSteps is beneath.open one component at a time: O_NOFOLLOW stops at links
// and there is no "..", so it cannot leave the tree either.
func openSteps(root int, path string, flags int) (int, error) {
	at, rest := root, path
	for {
		name, tail, more := strings.Cut(rest, "/")
		f := flags
		if more {
			f = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		}
		fd, err := openAt(at, name, f, 0)
		if at != root {
			err = errors.Join(err, unix.Close(at))
		}
		if err != nil {
			if fd >= 0 {
				err = errors.Join(err, unix.Close(fd))
			}
			return -1, sysError("openat", path, err)
		}
		if !more {
			return fd, nil
		}
		at, rest = fd, tail
	}
}

// openAt is openat(2) that goes on after a signal.
func openAt(dirfd int, name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Openat(dirfd, name, flags|unix.O_CLOEXEC, mode)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// dir opens the directory that holds path, for calls on its entries.
func (b beneath) dir(path string) (fd int, name string, err error) {
	dir, name := split(path)
	fd, err = b.open(dir, unix.O_PATH|unix.O_DIRECTORY)
	return fd, name, err
}

// split takes path apart; the parent of a name at the top is ".".
func split(path string) (dir, name string) {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i], path[i+1:]
	}
	return ".", path
}

func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// procPath names an open file for calls that take no O_PATH descriptor.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// closing closes fd and joins its error to the one that is returned.
func closing(fd int, err *error) {
	if e := unix.Close(fd); e != nil {
		*err = errors.Join(*err, fmt.Errorf("close: %w", e))
	}
}

// gone says that the entry is not, or no longer, what it was taken for.
func gone(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func clockNow() (stamp, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t); err != nil {
		return stamp{}, fmt.Errorf("clock_gettime: %w", err)
	}
	return stamp{t.Sec, uint32(t.Nsec)}, nil
}

// file opens a regular file to read it, without touching its access time
// where we may. Without root a file of ours that we may not read is made
// readable; lock then gives it its mode back, and is nil if that is not needed.
func (b beneath) file(path string) (fd int, lock func() error, err error) {
	const flags = unix.O_RDONLY | unix.O_NONBLOCK
	fd, err = b.open(path, flags|unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) { // not ours
		fd, err = b.open(path, flags)
	}
	if errors.Is(err, unix.EACCES) {
		return b.locked(path, err)
	}
	return fd, nil, err
}

func (b beneath) locked(path string, why error) (fd int, lock func() error, err error) {
	p, err := b.open(path, unix.O_PATH)
	if err != nil {
		return -1, nil, err
	}
	defer closing(p, &err)
	st, err := statAt(p, "", path)
	if err != nil {
		return -1, nil, err
	}
	if st.mode&unix.S_IFMT != unix.S_IFREG || int(st.uid) != unix.Geteuid() {
		return -1, nil, why
	}
	if err := unix.Chmod(procPath(p), st.mode&0o7777|0o400); err != nil {
		return -1, nil, sysError("chmod", path, err)
	}
	if fd, err = unix.Open(procPath(p), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != nil {
		return -1, nil, errors.Join(sysError("open", path, err), unix.Chmod(procPath(p), st.mode&0o7777))
	}
	return fd, func() error { return sysErrorOrNil("fchmod", path, unix.Fchmod(fd, st.mode&0o7777)) }, nil
}

func isUnprivileged() bool { return unix.Geteuid() != 0 }
