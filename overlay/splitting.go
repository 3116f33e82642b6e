package overlay

import (
	"bytes"
	"context"
	"os"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Names that came apart. Without the kernel's index (see links.go) a command that
// changes a file of several names changes the one that it used: that becomes a file of
// its own, and the others keep what they had. Changes says so of a name if
//
//   - the file that it was, below the change, has several names there,
//   - what it is now was copied up from that file, and
//   - another name of it is still there: as it was, or a file of its own as well.
//
// A file that was made anew and renamed over the name has left the others on any
// filesystem, and nothing on the disk tells it from a copy: the kernel notes no origin
// where a copy leaves other names behind (ovl_do_copy_up). Only where the attributes
// alone were copied is there a trace. Else the kernel is asked as long as the mount
// lives in which the copy was made: the handle of a file there is the lower file's
// (ovl_check_encode_origin; AT_HANDLE_FID, Linux 6.6), unless the kernel has dropped
// the name from its cache. What is not known is not said.

// A splitting collects the names that may have come apart.
type splitting struct {
	shown  *os.File         // the tree; nil where it cannot be had
	groups map[inode]*group // by the file below
	layers map[int]bool     // where those files lie in the view after
}

// A group is the names of one file below.
type group struct {
	copied map[string]inode // those that were copied up, and what they are
	left   []string         // those that are as they were
}

// together tells that they are one file still.
func (g *group) together() bool {
	files := map[inode]bool{}
	for _, is := range g.copied {
		files[is] = true
	}
	return len(g.left) == 0 && len(files) < 2
}

// splits tells whether x has come apart from other names. y is what had its path
// before, if anything; a file that was moved tells itself what it was.
func (c *comparison) splits(x, y *entry, path string) (bool, error) {
	if fileType(x) != snapshot.TypeFile {
		return false, nil
	}
	if x.meta && (y == nil || x.origin != y.origin) {
		if x.st.Nlink > 1 || x.data == nil || links(x.data) == 1 {
			return false, nil // a new name beside the old one is none that was parted
		}
		was, err := c.before.resolve(x.origin, false)
		if was == nil || err != nil {
			return false, err
		}
		defer was.close()
		y = was
	}
	if y == nil || fileType(y) != snapshot.TypeFile || y.st.Nlink == 1 {
		return false, nil
	}
	if may, err := c.maySplit(y); !may || err != nil {
		return false, err
	}
	if c.collect != nil {
		c.collect.add(x, y, path, c.split+y.layer)
		return false, nil
	}
	if c.apart == nil {
		groups, err := c.findGroups()
		if err != nil {
			return false, err
		}
		c.apart = map[string]bool{}
		for _, g := range groups {
			for path := range g.copied {
				c.apart[path] = !g.together()
			}
		}
	}
	return c.apart[path], nil
}

// maySplit tells whether changes of a file below can part its names.
func (c *comparison) maySplit(y *entry) (bool, error) {
	if !c.asked {
		indexed, err := c.d.keepsIndex(c.ctx)
		if err != nil {
			return false, err
		}
		c.asked, c.indexed = true, indexed
	}
	if c.indexed {
		return false, nil
	}
	return c.d.grouped(c.before, y)
}

// keepsIndex tells whether the kernel keeps names together; also where that is not
// known, for the tree is not shown.
func (d *Driver) keepsIndex(ctx context.Context) (bool, error) {
	if d.name == "" {
		return false, nil
	}
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return true, err
	}
	return exists(d.indexDir(open))
}

// grouped tells whether a file of a view has several names in its layer; of base it
// may be so by its links, which layers and names elsewhere can have as well.
func (d *Driver) grouped(v *merged, e *entry) (bool, error) {
	if e.st.Nlink == 1 || e.layer == len(v.roots)-1 {
		return e.st.Nlink > 1, nil
	}
	several, err := d.groups(v.units[e.layer])
	return several[e.st.Ino], err
}

func links(f *os.File) uint64 {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 1
	}
	return uint64(st.Nlink)
}

// findGroups goes through the changes once more, for all names that may have come
// apart, and then through the directories of the layers that these files are in: for
// names that are as they were. That costs a walk of base if there is one of its files.
func (c *comparison) findGroups() (map[inode]*group, error) {
	s := &splitting{groups: map[inode]*group{}, layers: map[int]bool{}}
	if shown, err := c.d.openShown(); err == nil {
		s.shown = shown
		defer shown.Close() //nolint:errcheck // nothing was written
	}
	again := *c
	again.collect = s
	if err := again.run(); err != nil || len(s.groups) == 0 {
		return nil, err
	}
	files := map[inode]bool{}
	for file := range s.groups {
		files[file] = true
	}
	w := aliasWalk{ctx: c.ctx, layers: s.layers, inodes: files, visit: func(path string, e *entry) error {
		g := s.groups[inode{e.st.Dev, e.st.Ino}]
		g.left = append(g.left, path)
		return nil
	}}
	return s.groups, w.run(c.after)
}

// add takes a name if it was copied up from y.
func (s *splitting) add(x, y *entry, path string, layer int) {
	if !x.meta && !s.copied(y, path) {
		return
	}
	file := inode{y.st.Dev, y.st.Ino}
	if s.groups[file] == nil {
		s.groups[file] = &group{copied: map[string]inode{}}
	}
	s.groups[file].copied[path] = inode{x.st.Dev, x.st.Ino}
	s.layers[layer] = true
}

// copied asks the kernel whether what the tree shows at path was made of y. The
// handle is a struct ovl_fh: three bytes, and what lowerHandle reads. Of another file
// it is that one's own.
func (s *splitting) copied(y *entry, path string) bool {
	const (
		pad  = 3
		kind = 0xf8  // OVL_FILEID_V1
		fid  = 0x200 // AT_HANDLE_FID of linux/fcntl.h
	)
	if s.shown == nil {
		return false
	}
	f, err := openBelow(s.shown, path, unix.O_PATH)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // O_PATH
	h, _, err := unix.NameToHandleAt(int(f.Fd()), "", unix.AT_EMPTY_PATH|fid)
	if err != nil || h.Type() != kind || h.Size() < pad+handleHead {
		return false
	}
	lower, _, err := unix.NameToHandleAt(int(y.f.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return false
	}
	b := h.Bytes()[pad:]
	n := int(b[2]) // in all, of which the handle may be longer
	if n < handleHead || n > len(b) {
		return false
	}
	of := lowerHandle(b[:n])
	return of.Type() == lower.Type() && bytes.Equal(of.Bytes(), lower.Bytes())
}
