package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Carrier = (*Driver)(nil)

// Carry makes a layer of some paths of a stack, to stand on another one. See
// snapshot.Carrier. It is a merge of what from has above the layers that both
// share, cut down to the paths and worked out for to: files are hard links to
// sealed layers, which never change again.
func (d *Driver) Carry(ctx context.Context, from, to []snapshot.LayerID, changes []snapshot.Change) (snapshot.LayerID, error) {
	shared := 0
	for shared < min(len(from), len(to)) && from[shared] == to[shared] {
		shared++
	}
	view, err := d.view(from[:shared], from[shared:])
	if err != nil {
		return "", err
	}
	defer view.close()
	below, err := d.view(to, nil)
	if err != nil {
		return "", err
	}
	defer below.close()
	c := carry{merge: merge{ctx: ctx, below: below, split: view.split, foreign: true, base: len(view.roots) - 1}}
	aside, err := d.aside(&c.merge, func(top string) error { return c.build(view, pick(changes), top) })
	if err != nil {
		return "", fmt.Errorf("carry changes over: %w", err)
	}
	crash.Point("overlay.carried")
	if !c.made {
		return "", d.toTrash(aside)
	}
	id := snapshot.NewLayerID()
	if err := os.Rename(aside, d.dir(id, "")); err != nil {
		return "", errors.Join(err, d.toTrash(aside))
	}
	return id, nil
}

// A picked is one path, or a directory on the way to some.
type picked struct {
	kids  map[string]*picked
	here  bool // it is carried itself
	fresh bool // a directory that is carried hides what to has at its path
	whole bool // all that is below it is carried
	times bool // an entry came or went in it, so its time goes along
}

// pick sorts changes into a tree of names.
func pick(changes []snapshot.Change) *picked {
	root := &picked{}
	for _, c := range changes {
		p := root.at(c.Path)
		p.here = true
		p.fresh = p.fresh || c.Kind != snapshot.ChangeMetadata
		if c.Kind == snapshot.ChangeRenamed {
			p.whole = true
			old := root.at(c.From)
			old.here, old.fresh = true, true
			root.at(filepath.Dir(c.From)).times = true
		}
		if c.Kind != snapshot.ChangeMetadata && c.Kind != snapshot.ChangeModified {
			root.at(filepath.Dir(c.Path)).times = true
		}
	}
	return root
}

func (p *picked) at(path string) *picked {
	if path == "." {
		return p
	}
	for name := range strings.SplitSeq(path, "/") {
		if p.kids == nil {
			p.kids = map[string]*picked{}
		}
		if p.kids[name] == nil {
			p.kids[name] = &picked{}
		}
		p = p.kids[name]
	}
	return p
}

// A carry is a merge of picked paths.
type carry struct {
	merge
	made bool // there is something in it
}

func (c *carry) build(view *merged, paths *picked, dir string) error {
	a, err := view.root()
	if err != nil {
		return err
	}
	defer a.close()
	b, err := c.below.root()
	if err != nil {
		return err
	}
	defer b.close()
	return c.directory(paths, a, b, dir)
}

// directory makes one directory with what is picked in it. It has from's
// attributes if it is picked itself, and to's if it is only on the way. b is nil
// where to has no directory.
func (c *carry) directory(p *picked, a, b *entry, dir string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if p.fresh {
		b = nil
	}
	for name, kid := range p.kids {
		if err := c.name(kid, a, b, name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	crash.Point("overlay.carrying")
	if p.here {
		c.made = true
		return c.dress(a, b, dir, false)
	}
	if err := c.dress(b, b, dir, false); err != nil || !p.times {
		return err
	}
	return setTimes(dir, a)
}

func setTimes(dir string, from *entry) error {
	t := []unix.Timespec{{Sec: from.st.Atim.Sec, Nsec: from.st.Atim.Nsec}, {Sec: from.st.Mtim.Sec, Nsec: from.st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, dir, t, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: dir, Err: err}
	}
	return nil
}

// name makes one entry.
func (c *carry) name(p *picked, a, b *entry, name, path string) error {
	if p.whole {
		c.made = true
		return c.merge.name(a, b, name, path)
	}
	x, err := a.dir.lookup(name, true)
	if err != nil {
		return err
	}
	defer x.close()
	var y *entry
	if b != nil {
		if y, err = b.dir.lookup(name, false); err != nil {
			return err
		}
	}
	defer y.close()
	switch {
	case !p.here && (!isDir(x) || !isDir(y)):
		return fmt.Errorf("%q is not a directory on both sides", path)
	case isDir(x):
		return c.directory(p, x, onlyDir(y), path)
	case x != nil:
		c.made = true
		return c.file(x, path, b != nil && x.origin == join(a.dir.origin, name))
	case y != nil:
		c.made = true
		return c.whiteout(path)
	}
	return nil
}
