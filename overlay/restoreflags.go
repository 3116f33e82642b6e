package overlay

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// locks are flags that forbid changes, by path: a restore gives them last.
type locks map[string]int

// flag gives what was made or changed for path its flags, but for those that would
// hinder what comes.
func (r *restore) flag(f *os.File, goal *entry, path string) error {
	want, err := shownFlags(goal, r.open, false)
	if err != nil {
		return err
	}
	r.lock(path, want)
	return giveFlags(f, want, flagsImposed&^flagsForbid)
}

func (r *restore) lock(path string, flags int) {
	delete(r.locks, path)
	if flags&flagsForbid != 0 {
		r.locks[path] = flags
	}
}

// flagIn is flag of a name.
func (r *restore) flagIn(at *os.File, name string, goal *entry, path string) error {
	if kind := goal.st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return nil
	}
	f, err := openAt(int(at.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return r.flag(f, goal, path)
}

// unlock takes the flags from a name that forbid changes, until the end.
func (r *restore) unlock(at *os.File, name, path string) error {
	st, err := statxAt(int(at.Fd()), name)
	if missing(err) {
		return nil
	}
	if err != nil || st.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) == 0 {
		return err
	}
	f, err := openAt(int(at.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return r.unlockOpen(f, path)
}

func (r *restore) unlockOpen(f *os.File, path string) error {
	had, err := readFlags(f)
	if err != nil || had&flagsForbid == 0 {
		return err
	}
	r.lock(path, had)
	return giveFlags(f, 0, flagsForbid)
}

// lockAll gives the flags that forbid changes, to what is there to take them.
func (r *restore) lockAll() error {
	for path, flags := range r.locks {
		f, err := openBelow(r.root, path, unix.O_RDONLY|unix.O_NONBLOCK)
		if missing(err) {
			continue
		}
		if err != nil {
			return err
		}
		if err := errors.Join(giveFlags(f, flags, flagsForbid), f.Close()); err != nil {
			return err
		}
	}
	return nil
}
