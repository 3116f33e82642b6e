package overlay

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// tempPrefix begins the names of what is being made or removed.
const tempPrefix = ".deployx-restore-"

func temp(name string) string {
	const most = 255 - len(tempPrefix)
	return tempPrefix + name[max(0, len(name)-most):]
}

// replace puts a new file in the place of what is there.
func (r *restore) replace(at *os.File, was, goal *entry, name, path string) error {
	tmp := temp(name)
	if err := r.create(at, goal, tmp, path); err != nil {
		return errors.Join(err, unlink(at, tmp))
	}
	crash.Point("overlay.restoring")
	err := unix.Renameat(int(at.Fd()), tmp, int(at.Fd()), name)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
		if _, err = r.remove(at, was, name, path); err == nil {
			err = unix.Renameat(int(at.Fd()), tmp, int(at.Fd()), name)
		}
	}
	if err != nil {
		return errors.Join(&fs.PathError{Op: "rename", Path: name, Err: err}, unlink(at, tmp))
	}
	// rename(2) of two names of one file does nothing and leaves both.
	if err := unlink(at, tmp); err != nil {
		return err
	}
	if id := (inode{goal.st.Dev, goal.st.Ino}); goal.st.Nlink > 1 && r.links[id] == "" {
		r.links[id] = path
	}
	return nil
}

func unlink(at *os.File, name string) error {
	if err := unix.Unlinkat(int(at.Fd()), name, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "unlink", Path: name, Err: err}
	}
	return nil
}

// create makes a file like the goal, or a link to one that was made like it.
func (r *restore) create(at *os.File, goal *entry, name, path string) error {
	first, err := r.first(goal, path)
	if err != nil {
		return err
	}
	if first != "" && r.link(first, at, name) == nil {
		r.lock(path, 0) // what is to forbid changes of it was noted by its first name
		return nil
	}
	if fileType(goal) != snapshot.TypeFile {
		return makeSpecialIn(at, goal, name)
	}
	to, err := createAt(at, name, 0o600)
	if err != nil {
		return err
	}
	from, err := goal.read()
	if err != nil {
		return errors.Join(err, to.Close())
	}
	if err = copyBytes(r.ctx, from, to); err == nil {
		err = disinherit(to)
	}
	if err == nil {
		err = copyAttributes(goal.dressed(), to)
	}
	if err == nil {
		err = r.flag(to, goal, path)
	}
	return errors.Join(err, to.Close())
}

// disinherit takes away the access list that a file got from its directory's default
// one: it would let in whom the file never did.
func disinherit(f *os.File) error {
	err := unix.Fremovexattr(int(f.Fd()), "system.posix_acl_access")
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return &fs.PathError{Op: "removexattr", Path: f.Name(), Err: err}
	}
	return nil
}

func createAt(at *os.File, name string, mode uint32) (*os.File, error) {
	fd, err := unix.Openat(int(at.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// makeDir makes a directory and all in it aside, and shows it when it is whole.
// One that is there already, for the work was cut off, is gone through.
func (r *restore) makeDir(at *os.File, goal *entry, name, path string) error {
	sub, err := openDirIn(at, name)
	if err != nil {
		return err
	}
	r.made = append(r.made, path)
	if sub != nil {
		defer sub.Close() //nolint:errcheck // read only
		return r.directory(sub, nil, goal, path)
	}
	tmp := temp(name)
	if err := r.removeAll(at, tmp); err != nil {
		return err
	}
	if err := unix.Mkdirat(int(at.Fd()), tmp, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: tmp, Err: err}
	}
	if sub, err = openAt(int(at.Fd()), tmp, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW); err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // read only
	if r.aside == nil {
		r.aside = map[string]string{}
	}
	r.aside[path] = tmp
	defer delete(r.aside, path)
	if err := r.directory(sub, nil, goal, path); err != nil {
		return errors.Join(err, r.removeAll(at, tmp))
	}
	crash.Point("overlay.restoring")
	err = unix.Renameat(int(at.Fd()), tmp, int(at.Fd()), name)
	if errors.Is(err, unix.ENOTDIR) { // a file was there
		if err = unlink(at, name); err == nil {
			err = unix.Renameat(int(at.Fd()), tmp, int(at.Fd()), name)
		}
	}
	if err != nil {
		return errors.Join(&fs.PathError{Op: "rename", Path: name, Err: err}, r.removeAll(at, tmp))
	}
	return nil
}
