package overlay

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// dressLike gives what f (O_PATH is enough) stands for the attributes of e and
// takes those away that e has not.
func dressLike(e *entry, f *os.File) error {
	if err := unix.Fchownat(int(f.Fd()), "", int(e.st.Uid), int(e.st.Gid), unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "chown", Path: f.Name(), Err: err}
	}
	link := fileType(e) == snapshot.TypeSymlink
	if !link {
		if err := unix.Chmod(fdName(f), e.st.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: f.Name(), Err: err}
		}
	}
	if err := dressXattrs(e, f); err != nil {
		return err
	}
	times := []unix.Timespec{{Sec: e.st.Atim.Sec, Nsec: e.st.Atim.Nsec}, {Sec: e.st.Mtim.Sec, Nsec: e.st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fdName(f), times, 0); err != nil {
		return &fs.PathError{Op: "utimensat", Path: f.Name(), Err: err}
	}
	return nil
}

func dressXattrs(e *entry, f *os.File) error {
	want, err := xattrs(e.f)
	if err != nil {
		return err
	}
	have, err := xattrs(f)
	if err != nil {
		return err
	}
	for name := range have {
		if _, ok := want[name]; !ok {
			if err := unix.Removexattr(fdName(f), name); err != nil && !errors.Is(err, unix.ENODATA) {
				return &fs.PathError{Op: "removexattr " + name, Path: f.Name(), Err: err}
			}
		}
	}
	for name, value := range want {
		if err := unix.Setxattr(fdName(f), name, value, 0); err != nil {
			return &fs.PathError{Op: "setxattr " + name, Path: f.Name(), Err: err}
		}
	}
	return nil
}

// makeSpecialIn makes a symbolic link, fifo, socket or device like e in a
// directory.
func makeSpecialIn(at *os.File, e *entry, name string) error {
	if fileType(e) == snapshot.TypeSymlink {
		target, err := readlink(e.f)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, int(at.Fd()), name); err != nil {
			return &fs.PathError{Op: "symlink", Path: name, Err: err}
		}
	} else if err := unix.Mknodat(int(at.Fd()), name, e.st.Mode, int(e.st.Rdev)); err != nil {
		return &fs.PathError{Op: "mknod", Path: name, Err: err}
	}
	f, _, err := openEntry(at, name)
	if err != nil {
		return err
	}
	if f == nil {
		return &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return errors.Join(dressLike(e, f), f.Close())
}
