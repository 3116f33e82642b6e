package overlay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// A todo is a place of the tree that may differ, or that leads to some.
type todo struct {
	all  bool             // nothing is known below: compare everything
	self bool             // the directory's own attributes may differ
	kids map[string]*todo // names that may differ
	// from is the path that the same directory had when it was looked at last,
	// if that was another one; was is what is known of it.
	from string
	was  *known
}

// add notes a name. That one is to be compared as what nothing is known of needs no note
// where all are.
func (t *todo) add(name string, k *todo) {
	if t.all && k.all && k.kids == nil {
		return
	}
	if t.kids == nil {
		t.kids = map[string]*todo{}
	}
	t.kids[name] = k
}

// kid is what is to be done with a name.
func (t *todo) kid(name string) *todo {
	if sub := t.kids[name]; sub != nil {
		return sub
	}
	return &todo{all: t.all}
}

// openUpper opens the tree's root in the live upper; nil if nothing of the tree
// is in it.
func (c *capture) openUpper() (*os.File, error) {
	f, err := c.d.openUnit(unit{c.d.dir(c.v.Open, ""), 1})
	if f == nil || err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	return openAt(int(f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
}

// scan walks the live upper and compares it with the index: stat calls, no
// contents. Nil if nothing can differ.
func (c *capture) scan() (*todo, error) {
	top, err := c.openUpper()
	if err != nil {
		return nil, err
	}
	if top == nil {
		if c.ix.Root == nil && slices.Equal(c.v.Layers, c.layers) {
			return nil, nil // nothing was changed ever
		}
		return &todo{all: true}, nil
	}
	defer top.Close() //nolint:errcheck // read only
	st, err := statxAt(int(top.Fd()), "")
	if err != nil {
		return nil, err
	}
	if !c.ix.Root.isDir() || c.ix.Root.ID.Ino != st.Ino {
		return &todo{all: true}, nil
	}
	return c.scanDir(top, &st, c.ix.Root)
}

// scanDir compares a directory with what is known of it. Nil if nothing in it can
// differ. In one that nothing is known of (k is nil) there may be some that are known
// from another place.
func (c *capture) scanDir(dir *os.File, st *unix.Statx_t, k *known) (*todo, error) {
	if err := c.ctx.Err(); err != nil {
		return nil, err
	}
	t := &todo{all: k == nil, self: k == nil || !k.unchanged(st)}
	names, err := c.names(dir)
	if err != nil {
		return nil, err
	}
	seen := 0
	for _, name := range names {
		kid := k.kid(name)
		if kid != nil {
			seen++
		}
		if err := c.scanName(dir, name, kid, t); err != nil {
			return nil, err
		}
	}
	if k != nil && seen < len(k.Kids) {
		there := map[string]bool{}
		for _, name := range names {
			there[name] = true
		}
		for name := range k.Kids {
			if !there[name] {
				t.add(name, &todo{all: true})
			}
		}
	}
	if !t.self && len(t.kids) == 0 {
		return nil, nil
	}
	return t, nil
}

// names lists a directory without allocating more than its names.
func (c *capture) names(dir *os.File) (names []string, err error) {
	for {
		n, err := unix.Getdents(int(dir.Fd()), c.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOENT) { // removed meanwhile (iterate_dir)
			return names, nil
		}
		if err != nil {
			return nil, &fs.PathError{Op: "getdents", Path: dir.Name(), Err: err}
		}
		if n == 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(c.buf[:n], -1, names)
	}
}

func (c *capture) scanName(dir *os.File, name string, k *known, t *todo) error {
	st, err := statxAt(int(dir.Fd()), name)
	if errors.Is(err, fs.ErrNotExist) { // it went, and shows as gone next time
		t.add(name, &todo{all: true})
		return nil
	}
	if err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch {
	case !isDir && k != nil && k.unchanged(&st):
		return nil
	case !isDir:
		c.visits(&st)
		t.add(name, &todo{all: true})
		return nil
	}
	id := identity{st.Ino, stampOf(st.Btime)}
	from := ""
	if !k.isDir() || k.ID != id {
		k, from = c.findMoved(id)
	}
	sub, err := openAt(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NOATIME)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		t.add(name, &todo{all: true})
		return nil
	}
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // read only
	s, err := c.scanDir(sub, &st, k)
	if err != nil {
		return err
	}
	if from != "" {
		if s == nil {
			s = &todo{}
		}
		s.from, s.was, s.self = from, k, true
	}
	if s != nil {
		t.add(name, s)
	}
	return nil
}

// findMoved finds a directory that the index knows in another place.
func (c *capture) findMoved(id identity) (*known, string) {
	if id.Birth == (stamp{}) {
		return nil, ""
	}
	if c.moved == nil {
		c.moved = map[identity]string{}
		c.ix.Root.collect(".", c.moved)
	}
	path, ok := c.moved[id]
	if !ok {
		return nil, ""
	}
	return c.ix.Root.find(path), path
}

func (k *known) collect(path string, into map[identity]string) {
	for name, kid := range k.Kids {
		if kid.isDir() {
			into[kid.ID] = join(path, name)
			kid.collect(join(path, name), into)
		}
	}
}

func (k *known) find(path string) *known {
	if path == "." {
		return k
	}
	dir, name := filepath.Split(path)
	parent := k.find(filepath.Clean(dir))
	if parent == nil {
		return nil
	}
	return parent.Kids[name]
}

func statxAt(dir int, name string) (st unix.Statx_t, err error) {
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dir, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return st, &fs.PathError{Op: "statx", Path: name, Err: err}
	}
	return st, nil
}

// origins are the places that directories of what the upper stands on had when
// they were looked at last, of those that were renamed.
type origins map[string]string

func (o origins) collect(k *known, path string) {
	for name, kid := range k.Kids {
		if kid.isDir() {
			if kid.Origin != "" {
				o[kid.Origin] = join(path, name)
			}
			o.collect(kid, join(path, name))
		}
	}
}

// place is where a path was then: a directory above it may have been renamed.
func (o origins) place(path string) string {
	for dir := path; dir != "."; dir = filepath.Dir(dir) {
		if at, ok := o[dir]; ok {
			return at + path[len(dir):]
		}
	}
	return path
}
