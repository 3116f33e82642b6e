package overlay

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"deployx/snapshot"
)

// Changes compares the view of below with that of below and layers, wherever
// one of layers has an entry. See snapshot.Driver.
func (d *Driver) Changes(ctx context.Context, below, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	return d.changes(ctx, below, layers, asked{renames: true, splits: true}, visit)
}

// ChangesByPath is Changes without renames. See snapshot.Renamer.
func (d *Driver) ChangesByPath(ctx context.Context, below, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	return d.changes(ctx, below, layers, asked{}, visit)
}

// asked says what changes is to tell: what was renamed, and which names came apart.
type asked struct{ renames, splits bool }

// changes is Changes, as far as it is asked for.
func (d *Driver) changes(ctx context.Context, below, layers []snapshot.LayerID, ask asked, visit func(snapshot.Change) error) error {
	if len(layers) == 0 {
		return nil
	}
	if err := d.joinShown(ctx, layers, below); err != nil {
		return err
	}
	c, err := d.comparison(ctx, below, layers)
	if err != nil {
		return err
	}
	defer c.after.close()
	c.visit, c.asked, c.indexed = visit, !ask.splits, !ask.splits
	if !ask.renames {
		c.byPath, c.moved = true, nil
	}
	return c.run()
}

// comparison holds the view of layers against that of what is below. The caller closes
// the former.
func (d *Driver) comparison(ctx context.Context, below, layers []snapshot.LayerID) (*comparison, error) {
	after, err := d.view(below, layers)
	if err != nil {
		return nil, err
	}
	after.reads = true
	c := &comparison{ctx: ctx, d: d, after: after, before: after.below(), split: after.split, moved: map[string]bool{}}
	root, err := after.root()
	if err == nil {
		err = c.findMoves(root, ".")
		root.close()
	}
	if err != nil {
		after.close()
		return nil, err
	}
	return c, nil
}

type comparison struct {
	ctx           context.Context
	d             *Driver
	after, before *merged
	split         int
	visit         func(snapshot.Change) error
	moved         map[string]bool // paths before that live on elsewhere
	byPath        bool            // each path is compared with what had it before

	asked, indexed bool            // whether the kernel keeps names together, once that was asked
	apart          map[string]bool // names that came apart from others, once there may be one
	collect        *splitting      // look for these only, and tell nothing
}

// run compares all.
func (c *comparison) run() error {
	a, err := c.after.root()
	if err != nil {
		return err
	}
	defer a.close()
	b, err := c.before.root()
	if err != nil {
		return err
	}
	defer b.close()
	if err := c.entry(a, b, ".", ""); err != nil {
		return err
	}
	return c.inside(a, b, nil, ".")
}

// findMoves collects the directories that were renamed: overlayfs leaves the
// old path in the new directory's redirect.
func (c *comparison) findMoves(a *entry, path string) error {
	names, err := a.dir.names(c.split)
	if err != nil {
		return err
	}
	for name, dir := range names {
		if !dir {
			continue
		}
		e, err := a.dir.lookup(name, false)
		if err != nil {
			return err
		}
		if e != nil && e.dir != nil && e.layer < c.split {
			if from := c.renamedFrom(e, a, name); from != "" {
				c.moved[from] = true
			}
			err = c.findMoves(e, join(path, name))
		}
		e.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// renamedFrom is the old path of a directory that was renamed; "" if it was
// not.
func (c *comparison) renamedFrom(e, parent *entry, name string) string {
	parts := e.dir.parts
	if c.byPath || parts[len(parts)-1].layer < c.split || e.dir.origin == join(parent.dir.origin, name) {
		return ""
	}
	return e.dir.origin
}

// A step is what is to be done at one place in the order of paths: a name's
// own entry, or the inside of a directory, which sorts by name and slash.
type step struct {
	key string
	do  func() error
}

// inside compares the entries of two directories. b is nil where there was
// none before. gone, if not nil, is the directory that had this path before a
// renamed one took it: what is left of it has been deleted.
func (c *comparison) inside(a, b, gone *entry, path string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	names, err := c.candidates(a, b, gone)
	if err != nil {
		return err
	}
	var steps []step
	for name := range names {
		steps = append(steps, step{name, nil}, step{name + "/", nil})
	}
	slices.SortFunc(steps, func(x, y step) int { return strings.Compare(x.key, y.key) })
	later := map[string]func() error{}
	for _, s := range steps {
		name, isInside := strings.CutSuffix(s.key, "/")
		if !isInside {
			more, err := c.name(a, b, gone, name, join(path, name))
			if err != nil {
				return err
			}
			if more != nil {
				later[name] = more
			}
			continue
		}
		if more := later[name]; more != nil {
			delete(later, name)
			if err := more(); err != nil {
				return err
			}
		}
	}
	return nil
}

// candidates are the names that can differ: those that the change's layers
// hold, and where nothing from below shows through, those that were there.
func (c *comparison) candidates(a, b, gone *entry) (map[string]bool, error) {
	names := map[string]bool{}
	if a != nil {
		parts, limit := a.dir.parts, c.split
		if b != nil && parts[len(parts)-1].layer >= c.split && a.dir.origin == b.dir.origin {
			b = nil // the rest shows through
		} else if c.byPath {
			limit = -1 // what came from elsewhere is new here
		}
		var err error
		if names, err = a.dir.names(limit); err != nil {
			return nil, err
		}
	}
	for _, e := range []*entry{b, gone} {
		if e == nil {
			continue
		}
		was, err := e.dir.names(-1)
		if err != nil {
			return nil, err
		}
		for n := range was {
			names[n] = true
		}
	}
	return names, nil
}

// A pairing is what one name stands for after and before.
type pairing struct {
	x, y, gone *entry
	from       string
}

func (p *pairing) close() {
	p.x.close()
	p.y.close()
	p.gone.close()
}

// name compares one name and returns what is to be done inside it, if it is or
// was a directory.
func (c *comparison) name(a, b, gone *entry, name, path string) (inside func() error, err error) {
	p, err := c.pair(a, b, gone, name)
	if err == nil {
		err = c.entry(p.x, p.y, path, p.from)
	}
	if err != nil || !isDir(p.x) && !isDir(p.y) && !isDir(p.gone) {
		p.close()
		return nil, err
	}
	return func() error {
		defer p.close()
		return c.inside(onlyDir(p.x), onlyDir(p.y), onlyDir(p.gone), path)
	}, nil
}

func onlyDir(e *entry) *entry {
	if isDir(e) {
		return e
	}
	return nil
}

func isDir(e *entry) bool { return e != nil && e.dir != nil }

// pair finds what a name stands for after and before. A directory that came
// from elsewhere is paired with what it was there; one that went elsewhere is
// no counterpart.
func (c *comparison) pair(a, b, gone *entry, name string) (p pairing, err error) {
	if a != nil {
		if p.x, err = a.dir.lookup(name, true); err != nil {
			return p, err
		}
		if isDir(p.x) {
			p.from = c.renamedFrom(p.x, a, name)
		}
	}
	if p.y, err = c.was(b, name); err != nil {
		return p, err
	}
	if p.gone, err = c.was(gone, name); err != nil {
		return p, err
	}
	switch {
	case p.from != "":
		p.gone.close()
		p.gone = p.y
		p.y, err = c.before.resolve(p.from, true)
	case p.y == nil:
		p.y, p.gone = p.gone, nil // nothing came along to take its path
	}
	return p, err
}

// was looks a name up as it was before; nil if it lives on elsewhere.
func (c *comparison) was(dir *entry, name string) (*entry, error) {
	if dir == nil {
		return nil, nil
	}
	e, err := dir.dir.lookup(name, true)
	if isDir(e) && c.moved[e.dir.origin] {
		e.close()
		e = nil
	}
	return e, err
}

// entry tells what happened to one path, if anything did.
func (c *comparison) entry(x, y *entry, path, from string) error {
	switch {
	case x == nil && y == nil:
		return nil
	case c.collect != nil:
		if x != nil && x.dir == nil {
			_, err := c.splits(x, y, path)
			return err
		}
		return nil
	case x == nil:
		return c.tell(snapshot.ChangeDeleted, y, path, "")
	case y == nil:
		return c.tellFile(snapshot.ChangeAdded, x, nil, path)
	case from != "":
		return c.tell(snapshot.ChangeRenamed, x, path, from)
	case fileType(x) != fileType(y):
		return c.tellFile(snapshot.ChangeType, x, y, path)
	case isDir(x):
		return c.directory(x, y, path)
	}
	kind, err := compareFiles(x, y)
	if err != nil || kind == "" {
		return err
	}
	return c.tellFile(kind, x, y, path)
}

func (c *comparison) directory(x, y *entry, path string) error {
	same, err := sameAttributes(x, y, false)
	if err != nil || same {
		return err
	}
	return c.tell(snapshot.ChangeMetadata, x, path, "")
}

func (c *comparison) tell(kind snapshot.ChangeKind, e *entry, path, from string) error {
	return c.visit(change(kind, e, path, from))
}

// tellFile is tell of an entry that may have come apart from other names. y is what
// had its path before.
func (c *comparison) tellFile(kind snapshot.ChangeKind, x, y *entry, path string) error {
	told := change(kind, x, path, "")
	if kind == snapshot.ChangeType {
		told.Was, y = fileType(y), nil
	}
	var err error
	if told.SplitLink, err = c.splits(x, y, path); err != nil {
		return err
	}
	return c.visit(told)
}

func change(kind snapshot.ChangeKind, e *entry, path, from string) snapshot.Change {
	size := e.st.Size
	if e.dir != nil {
		size = 0 // a directory's size is the file system's business
	}
	return snapshot.Change{
		Path: path, From: from, Kind: kind, Type: fileType(e),
		Mode: e.st.Mode & 0o7777, UID: e.st.Uid, GID: e.st.Gid, Size: size,
	}
}

func fileType(e *entry) snapshot.FileType { return snapshot.TypeOf(e.st.Mode) }

// Open reads a file or a link's target as the view of layers has it.
func (d *Driver) Open(_ context.Context, layers []snapshot.LayerID, path string) (io.ReadCloser, error) {
	v, err := d.view(layers, nil)
	if err != nil {
		return nil, err
	}
	defer v.close()
	e, err := v.resolve(path, true)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	}
	defer e.close()
	switch fileType(e) {
	case snapshot.TypeFile:
		return os.Open(fdName(e.bytes()))
	case snapshot.TypeSymlink:
		target, err := readlink(e.f)
		return io.NopCloser(strings.NewReader(target)), err
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fmt.Errorf("neither a file nor a symbolic link")}
}

// bytes is where a file's content is.
func (e *entry) bytes() *os.File {
	if e.data != nil {
		return e.data
	}
	return e.f
}
