package overlay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// joins tells whether a file of the tree that is like the goal may stay as one of the
// goal's names: it is the file that the others are, if there are any.
func (r *restore) joins(st *unix.Stat_t, goal *entry, path string) (bool, error) {
	live, id := inode{st.Dev, st.Ino}, inode{goal.st.Dev, goal.st.Ino}
	if is, ok := r.taken[live]; ok && is != id {
		return false, nil
	}
	first, err := r.first(goal, path)
	if err != nil {
		return false, err
	}
	if first != "" && first != path {
		f, err := r.openBelow(first)
		if err != nil {
			return false, err
		}
		defer f.Close() //nolint:errcheck // O_PATH
		var other unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &other); err != nil {
			return false, &fs.PathError{Op: "fstat", Path: first, Err: err}
		}
		if other.Ino != st.Ino || other.Dev != st.Dev {
			return false, nil
		}
	}
	if first == "" {
		r.links[id] = path
	}
	r.taken[live] = id
	return true, nil
}

// first is a name, other than path, that the tree has for the goal's file already: one
// that was made, or that both states have, so that nobody comes to it. "" if there is
// none. Only a file with several names costs a walk of the directories that may
// have them.
func (r *restore) first(goal *entry, path string) (string, error) {
	id := inode{goal.st.Dev, goal.st.Ino}
	if first, ok := r.links[id]; ok || goal.st.Nlink == 1 || r.goal == nil {
		return first, nil
	}
	names, err := r.namesIn(r.goal, goal)
	if err != nil {
		return "", err
	}
	for _, name := range names {
		if name == path {
			continue
		}
		if same, err := r.stayed(goal, name); err != nil {
			return "", err
		} else if same {
			r.links[id] = name
			return name, nil
		}
	}
	return "", nil
}

// namesIn are the names that a file has in a state.
func (r *restore) namesIn(v *merged, e *entry) (names []string, err error) {
	w := aliasWalk{
		ctx: r.ctx, layers: map[int]bool{e.layer: true}, inodes: map[inode]bool{{e.st.Dev, e.st.Ino}: true},
		visit: func(name string, _ *entry) error {
			names = append(names, name)
			return nil
		},
	}
	return names, w.run(v)
}

// parted tells whether the file that was at a path keeps another name, so that the goal
// has one beside it there: overlayfs without an index parts them (docs/design.md,
// "Hard links").
func (r *restore) parted(was *entry, path string) (bool, error) {
	if was == nil || was.st.Nlink == 1 || isDir(was) {
		return false, nil
	}
	names, err := r.namesIn(r.was, was)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if name == path {
			continue
		}
		e, err := r.goal.resolve(name, false)
		if err != nil {
			return false, err
		}
		stays := e != nil && !isDir(e) && e.st.Dev == was.st.Dev && e.st.Ino == was.st.Ino
		e.close()
		if stays {
			return true, nil
		}
	}
	return false, nil
}

// stayed tells whether a name is the goal's file in both states, and in the tree.
func (r *restore) stayed(goal *entry, name string) (bool, error) {
	was, err := r.was.resolve(name, false)
	if was == nil || err != nil {
		return false, err
	}
	defer was.close()
	if isDir(was) || was.st.Dev != goal.st.Dev || was.st.Ino != goal.st.Ino {
		return false, nil
	}
	f, err := r.openBelow(name)
	if err != nil {
		return false, nil //nolint:nilerr // others have been there
	}
	now := &entry{f: f}
	defer now.close()
	if err := unix.Fstat(int(f.Fd()), &now.st); err != nil {
		return false, &fs.PathError{Op: "fstat", Path: name, Err: err}
	}
	if fileType(now) != fileType(goal) {
		return false, nil
	}
	kind, err := compareFiles(now, goal)
	return kind == "" && err == nil, err
}

// openBelow opens a path of the tree (O_PATH).
func (r *restore) openBelow(path string) (*os.File, error) {
	return openBelow(r.root, r.place(path), unix.O_PATH)
}

// place is where a path is now: a directory above it may still be made aside.
func (r *restore) place(path string) string {
	if len(r.aside) == 0 {
		return path
	}
	at, place := "", ""
	for name := range strings.SplitSeq(path, "/") {
		at = filepath.Join(at, name)
		if tmp, ok := r.aside[at]; ok {
			name = tmp
		}
		place = filepath.Join(place, name)
	}
	return place
}

// link gives the file that has the name first in the tree another one.
func (r *restore) link(first string, at *os.File, name string) error {
	f, err := r.openBelow(first)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	link := func() error { return unix.Linkat(unix.AT_FDCWD, fdName(f), int(at.Fd()), name, unix.AT_SYMLINK_FOLLOW) }
	err = link()
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	locked, err := openAt(unix.AT_FDCWD, fdName(f), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer locked.Close() //nolint:errcheck // nothing was written
	if err := r.unlockOpen(locked, first); err != nil {
		return err
	}
	return link()
}
