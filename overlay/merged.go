package overlay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A merged is a view of base and some layers that reads the layers themselves,
// by overlayfs's own rules (Documentation/filesystems/overlayfs.rst;
// fs/overlayfs/namei.c: ovl_lookup). It is what diff, fold and commit look
// through: they must know in which layer an entry lies, which a mount would
// not tell.
type merged struct {
	// roots are the tree's root in each layer, newest first, base last; nil
	// where a layer has nothing of the tree.
	roots []*os.File
	units []unit // of the roots but base's, in a view of the driver's (viewOf)
	name  string // the tree below the overlay's root, as redirects name it; "" in the plain layout
	// split is how many of the newest layers are "the change": origin tells
	// where a directory is known in the view of the layers below those.
	split    int
	borrowed bool // the roots belong to another view

	// reads says that the view's files are to be read: they are opened for that at once,
	// for every way by /proc costs more than the reading of a small file.
	reads bool
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

	borrowed bool // the parts belong to the view
}

// An entry is what a name in a merged directory stands for.
type entry struct {
	st    unix.Stat_t
	f     *os.File // in the newest layer that has it, which decides on attributes; O_PATH, or to be read
	layer int
	dir   *mdir // for a directory; f is then its first part

	parent *os.File // where a file was found, and by which name: for a link to it, while the directory is open
	name   string
	own    bool // the parent is no part of the directory that the name was looked up in

	meta      bool     // a metacopy file: its bytes are in a lower layer
	data      *os.File // O_PATH, where they are, if they were looked for
	dataLayer int
	origin    string // its path in the view below the split

	reader  *os.File // see read
	settled bool     // see capture.settle
}

// read opens the bytes of a regular file for reading, once.
func (e *entry) read() (*os.File, error) {
	var err error
	if e.reader == nil {
		e.reader, err = openAt(unix.AT_FDCWD, fdName(e.bytes()), unix.O_RDONLY|unix.O_NOATIME)
		if errors.Is(err, unix.EPERM) { // in a user namespace that does not know its owner
			e.reader, err = openAt(unix.AT_FDCWD, fdName(e.bytes()), unix.O_RDONLY)
		}
	}
	return e.reader, err
}

// dressed is where a file's attributes are: by a descriptor that can be read from,
// which is the quicker one, if there is one.
func (e *entry) dressed() *os.File {
	if e.reader != nil && e.data == nil {
		return e.reader
	}
	return e.f
}

func (e *entry) close() {
	switch {
	case e == nil:
	case e.dir != nil:
		e.dir.close()
	default:
		if e.own {
			e.parent.Close() //nolint:errcheck // O_PATH
		}
		closeAll(e.f, e.data, e.reader) // of which two may be one
	}
}

func (m *mdir) close() {
	if m.borrowed {
		return
	}
	for _, p := range m.parts {
		p.f.Close() //nolint:errcheck // O_PATH
	}
}

// view opens base, the layers of below, and those of layers above them, which
// are the change; both oldest first.
func (d *Driver) view(below, layers []snapshot.LayerID) (*merged, error) {
	units := d.units(layers)
	return d.viewOf(len(units), units, d.units(below))
}

// below is the view without the change. It lives as long as v does.
func (v *merged) below() *merged {
	return &merged{roots: v.roots[v.split:], units: v.units[min(v.split, len(v.units)):], name: v.name, borrowed: true, reads: v.reads}
}

// openUnit opens the tree's root in a layer or a run of them, wherever it is
// now: an open layer is not sealed yet. Nil if it changed nothing.
func (d *Driver) openUnit(u unit) (*os.File, error) {
	if d.name == "" {
		return openDir(filepath.Join(u.dir, "u"))
	}
	for _, sub := range []string{"s", "u"} {
		f, err := openDir(filepath.Join(u.dir, sub, d.name))
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
	}
	_, err := os.Lstat(u.dir) // a layer that is lost must not pass for an empty one
	return nil, err
}

// openBase opens the tree's root in base. The subtree layout would walk into
// the mount on the tree, so it looks through a detached clone of the mount
// below.
func (d *Driver) openBase() (*os.File, error) {
	if d.name == "" {
		if bound, err := d.baseBound(); err != nil {
			return nil, err
		} else if bound {
			return openDir(d.base())
		}
		clone, err := openTree(unix.AT_FDCWD, d.tree, unix.OPEN_TREE_CLONE) // without what is mounted below it
		if err != nil {
			return nil, err
		}
		defer d.letGo(clone)
		return openAt(int(clone.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY)
	}
	d.below.mu.Lock()
	defer d.below.mu.Unlock()
	if d.below.f == nil {
		clone, err := openTree(unix.AT_FDCWD, d.base(), unix.OPEN_TREE_CLONE)
		if err != nil {
			return nil, err
		}
		d.below.f = clone
	}
	return openAt(int(d.below.f.Fd()), d.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

// A below is the clone of the mount below the tree. It is kept while the tree
// is covered: the kernel waits for all its processors when a clone goes.
type below struct {
	mu sync.Mutex // Maintain looks beside the other methods
	f  *os.File
}

func (b *below) close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.f
	b.f = nil
	if f == nil {
		return nil
	}
	return f.Close()
}

func (v *merged) close() {
	if v.borrowed {
		return
	}
	for _, f := range v.roots {
		if f != nil {
			f.Close() //nolint:errcheck // O_PATH
		}
	}
}

// root is the tree's root in the view. It borrows the roots.
func (v *merged) root() (*entry, error) {
	e := &entry{dir: &mdir{v: v, origin: ".", borrowed: true}}
	for i, f := range v.roots {
		if f != nil {
			e.dir.parts = append(e.dir.parts, part{i, f})
		}
	}
	e.f, e.layer = e.dir.parts[0].f, e.dir.parts[0].layer
	if err := unix.Fstat(int(e.f.Fd()), &e.st); err != nil {
		return nil, &fs.PathError{Op: "fstat", Path: e.f.Name(), Err: err}
	}
	return e, nil
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
// all parts for a limit of -1: candidates, whiteouts among them, and whether one
// of the parts may have a directory there.
func (m *mdir) names(limit int) (map[string]bool, error) {
	set := map[string]bool{}
	for _, p := range m.parts {
		if limit >= 0 && p.layer >= limit {
			break
		}
		// By this name ReadDir finds the entries where a directory does not tell
		// their types.
		f, err := openAt(unix.AT_FDCWD, fdName(p.f), unix.O_RDONLY|unix.O_DIRECTORY)
		if err != nil {
			return nil, err
		}
		entries, err := f.ReadDir(-1)
		f.Close()                                          //nolint:errcheck // read only
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // removed meanwhile (iterate_dir)
			return nil, err
		}
		for _, e := range entries {
			set[e.Name()] = set[e.Name()] || e.IsDir()
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
	if v.name != "" {
		p = strings.TrimPrefix(strings.TrimPrefix(p, v.name), "/")
	}
	if p == "" {
		return "."
	}
	return p
}
