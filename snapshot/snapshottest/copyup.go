package snapshottest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/treecmp"
)

// copyUp makes a plain directory err as overlayfs does, where it is known to:
// so an option that admits an error pins it.
type copyUp struct {
	splits bool // Options.SplitsHardLinks
	opens  bool // Options.OpenTouches

	// Files by inode, as they were when the view was shown. A file leaves below
	// when it is copied up; it is in meta while only its attributes were.
	shared, below, meta map[uint64]bool
}

// shown notes the files that are below root now.
func (c *copyUp) shown(root string) error {
	c.shared, c.below, c.meta = map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
	if !c.splits && !c.opens {
		return nil
	}
	return filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		c.below[st.Ino] = true
		c.shared[st.Ino] = c.splits && st.Nlink > 1
		return nil
	})
}

// hidden forgets them all: writes go to the files themselves.
func (c *copyUp) hidden() { c.shared, c.below, c.meta = nil, nil, nil }

// before does to the plain directory what the kernel does to the other one when
// op makes it copy a file up. What is refused before that copies nothing.
func (c *copyUp) before(root string, op Op) error {
	path, to := at(root, op.Path), at(root, op.To)
	switch op.Verb {
	case "write", "append", "overwrite", "quiet", "mapped", "punch", "truncate", "open":
		return c.data(path)
	case "chown", "touch", "chattr":
		return c.attributes(path)
	case "chmod":
		if kind(path) != unix.S_IFLNK {
			return c.attributes(path)
		}
	case "setxattr":
		if kind(path) == unix.S_IFREG || strings.HasPrefix(op.Name, "trusted.") {
			return c.attributes(path)
		}
	case "removexattr":
		if _, err := unix.Lgetxattr(path, op.Name, nil); err == nil {
			return c.attributes(path)
		}
	case "rename":
		if op.Path != op.To && kind(to) != unix.S_IFDIR && kind(filepath.Dir(to)) == unix.S_IFDIR {
			return c.attributes(path)
		}
	case "exchange":
		if op.Path != op.To && kind(path) != 0 && kind(to) != 0 && !within(op.Path, op.To) && !within(op.To, op.Path) {
			return errors.Join(c.attributes(path), c.attributes(to))
		}
	case "link":
		if kind(to) == 0 && kind(filepath.Dir(to)) == unix.S_IFDIR {
			return c.attributes(path)
		}
	}
	return nil
}

func within(path, dir string) bool { return dir == "." || strings.HasPrefix(path, dir+"/") }

// kind is the type in the mode of path itself, 0 when it is not there.
func kind(path string) uint32 {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0
	}
	return st.Mode & unix.S_IFMT
}

// data copies the whole file up. Where its attributes were before, the kernel
// writes the data later and does not put the time back (Linux 6.18,
// ovl_copy_up_meta_inode_data).
func (c *copyUp) data(path string) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if err := c.part(path, &st); err != nil {
		return err
	}
	var err error
	if c.opens && c.meta[st.Ino] {
		now := []unix.Timespec{{Nsec: unix.UTIME_NOW}, {Nsec: unix.UTIME_NOW}}
		err = unix.UtimesNanoAt(unix.AT_FDCWD, path, now, unix.AT_SYMLINK_NOFOLLOW)
	}
	delete(c.below, st.Ino)
	delete(c.meta, st.Ino)
	return err
}

// dataBelow tells whether a file's data have not been copied up.
func (c *copyUp) dataBelow(path string) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && (c.below[st.Ino] || c.meta[st.Ino])
}

// attributes copies what is no directory up, but not its data.
func (c *copyUp) attributes(path string) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil
	}
	if err := c.part(path, &st); err != nil {
		return err
	}
	if c.below[st.Ino] {
		delete(c.below, st.Ino)
		c.meta[st.Ino] = true
	}
	return nil
}

// part gives path a copy of its own, if it shares a file with other names, and
// changes st to the copy's. It leaves the directory's times alone.
func (c *copyUp) part(path string, st *unix.Stat_t) error {
	shared := c.shared[st.Ino] && st.Nlink > 1
	if !shared {
		delete(c.shared, st.Ino)
		return nil
	}
	parent := filepath.Dir(path)
	var dir unix.Stat_t
	if err := unix.Lstat(parent, &dir); err != nil {
		return err
	}
	if err := recopy(parent, filepath.Base(path)); err != nil {
		return fmt.Errorf("part hard link %q: %w", path, err)
	}
	if err := unix.Lstat(path, st); err != nil {
		return err
	}
	c.below[st.Ino] = true
	return unix.UtimesNanoAt(unix.AT_FDCWD, parent, []unix.Timespec{dir.Atim, dir.Mtim}, 0)
}

// recopy replaces parent/name by a copy of itself.
func recopy(parent, name string) error {
	const tmp = ".part"
	pic, err := treecmp.Take(parent)
	if err != nil {
		return err
	}
	e := pic[name]
	copied := filepath.Join(parent, tmp)
	if err := createAs(e, filepath.Join(parent, name), copied); err != nil {
		return err
	}
	if err := dress(e, copied); err != nil {
		return err
	}
	return unix.Rename(copied, filepath.Join(parent, name))
}
