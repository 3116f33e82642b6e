package overlay

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// remove takes away what was there. A directory in which others have made
// something since stays, with that.
func (r *restore) remove(at *os.File, was *entry, name, path string) (bool, error) {
	sub, err := openDirIn(at, name)
	if err != nil {
		return false, err
	}
	if sub == nil {
		if others, err := r.others(at, was, nil, name, path); others || err != nil {
			return true, err
		}
		if err := r.unlock(at, name, path); err != nil {
			return true, err
		}
		return true, unlink(at, name)
	}
	defer sub.Close() //nolint:errcheck // read only
	if err := r.unlockOpen(sub, path); err != nil {
		return true, err
	}
	if isDir(was) {
		names, err := was.dir.names(-1)
		if err != nil {
			return true, err
		}
		for n := range names {
			f, err := was.dir.lookup(n, true)
			if err == nil && f != nil {
				_, err = r.remove(sub, f, n, join(path, n))
			}
			f.close()
			if err != nil {
				return true, err
			}
		}
	}
	if _, err := r.sweep(sub); err != nil {
		return true, err
	}
	err = unix.Unlinkat(int(at.Fd()), name, unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, fs.ErrNotExist) {
		return true, &fs.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return true, nil
}

// sweep removes what a restore that was cut off left in a directory.
func (r *restore) sweep(at *os.File) (some bool, err error) {
	d, err := openAt(int(at.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	names, err := d.Readdirnames(-1)
	d.Close() //nolint:errcheck // read only
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			some = true
			if err := r.removeAll(at, name); err != nil {
				return some, err
			}
		}
	}
	return some, nil
}

// removeAll removes one of our own.
func (r *restore) removeAll(at *os.File, name string) error {
	sub, err := openDirIn(at, name)
	if err != nil {
		return err
	}
	if sub == nil {
		return unlink(at, name)
	}
	defer sub.Close() //nolint:errcheck // read only
	names, err := sub.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := r.removeAll(sub, n); err != nil {
			return err
		}
	}
	if err := unix.Unlinkat(int(at.Fd()), name, unix.AT_REMOVEDIR); err != nil {
		return &fs.PathError{Op: "rmdir", Path: name, Err: err}
	}
	return nil
}
