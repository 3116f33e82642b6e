package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// Where a file of base that has several names gets other attributes it is copied for
// the first of them, and the others become links to the copy. One who is cut off
// between two names leaves them apart, in whatever order, and the last name of the
// old file looks like any other. So the copy has a name of its own in
// layers/copied/TOP before it gets the first in base, until all is committed.
type siblings struct {
	dir    string           // TOP is the newest layer that is committed
	copied map[inode]string // the layers' files, and their copies
}

// siblingsOf finds what one who was cut off has left, if these layers were among those
// that he committed, and gives up the rest: their layers are gone, and a file of
// another may have the inode now.
func (d *Driver) siblingsOf(r *reach, layers []snapshot.LayerID) (s siblings, err error) {
	root := filepath.Join(r.layers, "copied")
	s = siblings{filepath.Join(root, string(layers[len(layers)-1])), map[inode]string{}}
	tops, err := readNames(root)
	for _, top := range tops {
		if !slices.Contains(layers, snapshot.LayerID(top)) {
			err = errors.Join(err, d.toTrash(filepath.Join(d.layers, "copied", top)))
			continue
		}
		names, e := readNames(filepath.Join(root, top))
		for _, n := range names {
			var id inode
			if _, e := fmt.Sscanf(n, "%d.%d", &id.dev, &id.ino); e != nil {
				return s, fmt.Errorf("%q in %s: %w", n, root, e)
			}
			s.copied[id] = filepath.Join(root, top, n)
		}
		err = errors.Join(err, e)
	}
	return s, err
}

func (s *siblings) has(st *unix.Stat_t) bool {
	return len(s.copied) > 0 && s.copied[inode{st.Dev, st.Ino}] != ""
}

// sibling makes to a name of the copy of e.
func (c *commit) sibling(e *entry, to target) error {
	id := inode{e.st.Dev, e.st.Ino}
	kept, aside := c.siblings.copied[id], c.aside()
	if kept == "" {
		kept = filepath.Join(c.siblings.dir, fmt.Sprintf("%d.%d", id.dev, id.ino))
		if err := os.MkdirAll(c.siblings.dir, 0o700); err != nil {
			return err
		}
		if err := aside.replica(e); err != nil {
			return errors.Join(err, aside.remove())
		}
		// Who goes on after a power cut trusts what has this name.
		if err := durable.SyncFiles(aside.path()); err != nil {
			return errors.Join(err, aside.remove())
		}
		crash.Point("overlay.commit.copied")
		if err := unix.Linkat(int(aside.dir.Fd()), aside.name, unix.AT_FDCWD, kept, 0); err != nil {
			return errors.Join(&fs.PathError{Op: "link", Path: kept, Err: err}, aside.remove())
		}
		c.siblings.copied[id] = kept
		crash.Point("overlay.commit.kept")
		return c.moveIn(aside, to)
	}
	var st unix.Stat_t
	if err := unix.Lstat(kept, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: kept, Err: err}
	}
	if to.isInode(&entry{st: st}) {
		return nil
	}
	if err := unix.Linkat(unix.AT_FDCWD, kept, int(aside.dir.Fd()), aside.name, 0); err != nil {
		return &fs.PathError{Op: "link", Path: kept, Err: err}
	}
	crash.Point("overlay.commit.staged")
	return c.moveIn(aside, to)
}
