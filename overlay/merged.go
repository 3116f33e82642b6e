package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A merged is a view of base and some sealed layers that reads the layers
// themselves, by overlayfs's own rules (Documentation/filesystems/overlayfs.rst;
// fs/overlayfs/namei.c: ovl_lookup). It is what diff, fold and commit look
// through: they must know in which layer an entry lies, which a mount would
// not tell.
type merged struct {
	roots []*os.File // of the layers, newest first, base last
	name  string     // the tree below the roots; "" in the plain layout
	clone *os.File   // the mount below the tree's
	// split is how many of the newest layers are "the change": origin tells
	// where a directory is known in the view of the layers below those.
	split int
}

// A part is one layer's share of a merged directory.
type part struct {
	layer int // index into roots
	f     *os.File
}

// A mdir is a directory of a merged view: the parts of it, newest first.
type mdir struct {
	v      *merged
	parts  []part
	origin string // its path in the view below the split; "." is the tree's root
}

// An entry is what a name in a merged directory stands for.
type entry struct {
	st    unix.Stat_t
	f     *os.File // O_PATH, in the newest layer that has it: it decides on attributes
	data  *os.File // O_PATH, where a metacopy file's bytes are; else nil
	layer int
	dir   *mdir // for a directory; f is then its first part
}

func (e *entry) close() {
	switch {
	case e == nil:
	case e.dir != nil:
		e.dir.close()
	default:
		e.f.Close() //nolint:errcheck // O_PATH
		if e.data != nil {
			e.data.Close() //nolint:errcheck // O_PATH
		}
	}
}

func (m *mdir) close() {
	for _, p := range m.parts {
		p.f.Close() //nolint:errcheck // O_PATH
	}
}

// view opens base and the given layers, oldest first in layers.
func (d *Driver) view(layers []snapshot.LayerID) (v *merged, err error) {
	v = &merged{name: d.name}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	for i := len(layers) - 1; i >= 0; i-- {
		f, err := openDir(d.current(layers[i]))
		if err != nil {
			return v, err
		}
		v.roots = append(v.roots, f)
	}
	base, err := d.openBase(v)
	if err != nil {
		return v, err
	}
	v.roots = append(v.roots, base)
	return v, nil
}

// current is where a layer's content is now: an open layer is not sealed yet.
func (d *Driver) current(id snapshot.LayerID) string {
	if d.name != "" {
		if _, err := os.Lstat(filepath.Join(d.dir(id, "s"), d.name)); errors.Is(err, fs.ErrNotExist) {
			return d.dir(id, "u")
		}
	}
	return d.lower(id)
}

// openBase opens the bottom root. The subtree layout would walk into the mount
// on the tree, so it looks through a detached clone of the mount below.
func (d *Driver) openBase(v *merged) (*os.File, error) {
	if d.name != "" {
		var err error
		v.clone, err = openTree(unix.AT_FDCWD, d.base(), unix.OPEN_TREE_CLONE)
		if err != nil {
			return nil, err
		}
		return openAt(int(v.clone.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY)
	}
	if _, err := os.Lstat(d.base()); err == nil && !sameMount(d.base(), d.layers) {
		return openDir(d.base())
	}
	return openDir(d.tree)
}

func (v *merged) close() {
	for _, f := range append(v.roots, v.clone) {
		if f != nil {
			f.Close() //nolint:errcheck // O_PATH
		}
	}
}

// root is the tree's root in the view.
func (v *merged) root() (*entry, error) {
	var all []part
	for i, f := range v.roots {
		c, err := openAt(int(f.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		all = append(all, part{i, c})
	}
	top := &mdir{v: v, parts: all, origin: "."}
	if v.name == "" {
		e := &entry{f: all[0].f, dir: top}
		return e, unix.Fstat(int(e.f.Fd()), &e.st)
	}
	defer top.close()
	e, err := top.lookup(v.name, false)
	if err == nil && (e == nil || e.dir == nil) {
		e.close()
		return nil, fmt.Errorf("%q is not a directory", v.name)
	}
	if e != nil {
		e.dir.origin = "."
	}
	return e, err
}

// resolve finds a path of the view; nil if there is nothing.
func (v *merged) resolve(path string, data bool) (*entry, error) {
	e, err := v.root()
	if err != nil || path == "." {
		return e, err
	}
	for comp := range strings.SplitSeq(path, "/") {
		if e.dir == nil {
			e.close()
			return nil, nil
		}
		next, err := e.dir.lookup(comp, data)
		e.close()
		if next == nil || err != nil {
			return nil, err
		}
		e = next
	}
	return e, nil
}

// names lists what the parts from layer 0 up to, not including, limit hold, or
// all parts for a limit of -1: candidates, whiteouts among them.
func (m *mdir) names(limit int) (map[string]bool, error) {
	set := map[string]bool{}
	for _, p := range m.parts {
		if limit >= 0 && p.layer >= limit {
			break
		}
		f, err := openAt(int(p.f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		names, err := f.Readdirnames(-1)
		f.Close() //nolint:errcheck // read only
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			set[n] = true
		}
	}
	return set, nil
}

// join continues a path of the view.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// clean makes an absolute redirect, which begins at the overlay's root, a path
// of the view.
func (v *merged) clean(redirect string) string {
	p := strings.TrimPrefix(redirect, "/")
	if v.name == "" {
		return p
	}
	if p == v.name {
		return "."
	}
	return strings.TrimPrefix(p, v.name+"/")
}
