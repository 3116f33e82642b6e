package overlay

import (
	"errors"
	"io/fs"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// inside makes what differs below a directory: x is what is shown, y what the
// layers have, nil if nothing of theirs shows through. k is what is known of x,
// to be brought up to date.
func (c *capture) inside(x, y *entry, t *todo, k *known, p *spot, path string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	names, err := c.different(x, y, t, path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.name(x, y, t.kid(name), k, p, name, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// different are the names to be compared: those of t or, where nothing is known,
// those that one state has and the other has not from the same place; and those that
// files with several names have there.
func (c *capture) different(x, y *entry, t *todo, path string) ([]string, error) {
	set := maps.Clone(c.with[path])
	if set == nil {
		set = map[string]bool{}
	}
	for name := range t.kids {
		set[name] = true
	}
	if t.all {
		if err := addDiffering(set, x, y); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// addDiffering adds the names that two directories do not have from the same
// place.
func addDiffering(set map[string]bool, x, y *entry) error {
	a, b := apart(x, y)
	for _, parts := range [][]part{a, b} {
		names, err := (&mdir{parts: parts}).names(-1)
		if err != nil {
			return err
		}
		for name := range names {
			set[name] = true
		}
	}
	return nil
}

// apart are the parts that two directories do not have in common at the bottom.
func apart(x, y *entry) (a, b []part) {
	if x != nil {
		a = x.dir.parts
	}
	if y != nil {
		b = y.dir.parts
	}
	for len(a) > 0 && len(b) > 0 && sameInode(a[len(a)-1].f, b[len(b)-1].f) {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

// name compares one name. It notes how the upper's entry was before the look:
// whatever changes it from then on is seen next time.
func (c *capture) name(x, y *entry, t *todo, k *known, p *spot, name, path string) error {
	st, there, err := c.upperStat(x, name)
	if err != nil {
		return err
	}
	a, err := x.dir.lookup(name, true)
	if err != nil {
		return err
	}
	lent := false
	defer func() {
		if !lent {
			a.close()
		}
	}()
	var b *entry
	if y != nil {
		if b, err = y.dir.lookup(name, true); err != nil {
			return err
		}
		defer b.close()
	}
	if isDir(a) {
		return c.directory(a, b, t, k, p, name, path, &st, there)
	}
	if taken, err := c.takes(a, path); !taken || err != nil {
		if err == nil && !there && k != nil {
			k.owe(name)
			c.ix.dirty = true
		}
		return err // and what is known of it stays
	}
	if lent, err = c.leaf(a, b, p, name); err != nil {
		return err
	}
	c.learn(k, name, &st, there)
	return nil
}

// upperStat looks at a name in the live upper.
func (c *capture) upperStat(x *entry, name string) (st unix.Statx_t, there bool, err error) {
	if len(x.dir.parts) == 0 || x.dir.parts[0].layer != 0 {
		return st, false, nil
	}
	st, err = statxAt(int(x.dir.parts[0].f.Fd()), name)
	if errors.Is(err, fs.ErrNotExist) {
		return st, false, nil
	}
	return st, err == nil, err
}

// learn notes an entry that is now the same in both states. A directory keeps
// what is known below it.
func (c *capture) learn(k *known, name string, st *unix.Statx_t, there bool) *known {
	c.ix.dirty = true
	if k == nil {
		return nil
	}
	if !there {
		delete(k.Kids, name)
		return nil
	}
	if k.Kids == nil {
		k.Kids = map[string]*known{}
	}
	n := knownOf(st, c.clock)
	if old := k.Kids[name]; old.isDir() && old.ID == n.ID {
		n.Kids = old.Kids
	}
	k.Kids[name] = n
	return n
}

// leaf compares what is shown, nothing or no directory, with what was. lent says that
// a is somebody else's to close.
func (c *capture) leaf(a, b *entry, p *spot, name string) (lent bool, err error) {
	switch {
	case a == nil && b == nil:
		return false, nil
	case a == nil:
		c.tell(snapshot.ChangeDeleted, b)
		return false, p.whiteout(name)
	case b == nil:
		c.tell(snapshot.ChangeAdded, a)
	case b.dir != nil || fileType(a) != fileType(b):
		c.tell(snapshot.ChangeType, b)
	default:
		kind, linked, err := c.compared(a, b)
		if err != nil {
			return false, err
		}
		if kind == "" && !linked {
			if same, err := sameShownFlags(a, b, c.v.Open, a.layer == 0); same || err != nil {
				return false, err
			}
		}
		if kind != "" {
			c.tell(kind, a)
			if err := c.parted(a, b); err != nil {
				return false, err
			}
		}
		if kind != snapshot.ChangeModified && !linked && fileType(a) == snapshot.TypeFile {
			return false, p.shell(a, name)
		}
	}
	return p.file(a, name)
}

// tell counts what Changes will find.
func (c *capture) tell(kind snapshot.ChangeKind, e *entry) {
	c.counts.Add(snapshot.Change{Kind: kind})
	c.more = c.more || isDir(e)
}

// parted leaves the counting to Changes if a name may have come apart from others.
func (c *capture) parted(a, b *entry) error {
	if c.more || c.indexed || b.st.Nlink == 1 || fileType(a) != snapshot.TypeFile {
		return nil
	}
	var err error
	c.more, err = c.d.grouped(c.before, b)
	return err
}

// compare tells how a file differs, "" if it does not.
func (c *capture) compare(a, b *entry) (snapshot.ChangeKind, error) {
	if a.st.Dev == b.st.Dev && a.st.Ino == b.st.Ino {
		return "", nil
	}
	if err := c.settle(a); err != nil {
		return "", err
	}
	return compareFiles(a, b)
}

// directory compares a directory that is shown.
func (c *capture) directory(a, b *entry, t *todo, k *known, p *spot, name, path string, st *unix.Statx_t, there bool) error {
	sub := &spot{c: c, parent: p, name: name, x: a}
	defer sub.close()
	id := identity{st.Ino, stampOf(st.Btime)}
	from, counterpart, t, err := c.matched(a, b, t, path, there && c.ix.Placed[id])
	if err != nil {
		return err
	}
	if counterpart != b {
		defer counterpart.close()
	}
	sub.merged, sub.redirect = counterpart != nil, from
	elsewhere := counterpart == nil || counterpart != b
	c.more = c.more || elsewhere
	taken := c.only(path)
	if taken && elsewhere {
		if err := sub.make(); err != nil { // else when something in it is taken
			return err
		}
	}
	var n *known
	if k != nil && there {
		if t.was != nil && k.Kids[name] != t.was {
			if k.Kids == nil {
				k.Kids = map[string]*known{}
			}
			k.Kids[name] = t.was
		}
		if t.all {
			delete(k.Kids, name) // known anew, name by name
		}
		n = c.learn(k, name, st, there)
		n.Racy = n.Racy || !taken
	} else {
		c.learn(k, name, st, there)
	}
	if n != nil && a.dir.origin != path {
		n.Origin = a.dir.origin
	}
	if err := c.inside(a, counterpart, t, n, sub, path); err != nil {
		return err
	}
	if (t.self || t.all) && taken {
		if err := c.attributes(a, counterpart, sub); err != nil {
			return err
		}
	}
	switch {
	case elsewhere && sub.dir == nil && k != nil:
		delete(k.Kids, name) // the layers have it where it was, or not at all
	case t.all && there:
		c.arrived = append(c.arrived, id)
	}
	return sub.finish()
}

// matched is counterpart where that is to be asked, and what is then to be compared in
// the directory.
func (c *capture) matched(a, b *entry, t *todo, path string, placed bool) (from string, old *entry, in *todo, err error) {
	if t.from == "" && isDir(b) && !t.all {
		return "", b, t, nil
	}
	if from, old, err = c.counterpart(a, b, t, path, placed); err != nil {
		return "", nil, nil, err
	}
	if old == nil || old != b {
		t = &todo{all: true, self: true, kids: t.kids, from: t.from, was: t.was}
		t.all = t.was == nil || old == nil || from != t.from
	}
	return from, old, t, nil
}

// counterpart finds what a directory that is not known here was in the layers:
// the one that has the same parts, here or where it was renamed from. Nil if it
// is new: then nothing of the layers may show through.
func (c *capture) counterpart(a, b *entry, t *todo, path string, placed bool) (from string, old *entry, err error) {
	if t.from != "" {
		if old, err = c.before.resolve(t.from, false); err != nil || isDir(old) {
			return t.from, old, err
		}
		old.close()
	}
	if isDir(b) && (c.blind || placed) {
		return "", b, nil // compared name by name, whatever it was
	}
	if a.dir.parts[len(a.dir.parts)-1].layer == 0 {
		return "", nil, nil // made anew: what was there may have gone elsewhere
	}
	if isDir(b) && c.shares(a, b) {
		return "", b, nil
	}
	at := c.origins.place(a.dir.origin)
	if at == path {
		if isDir(b) {
			return "", b, nil // one whose layers have been folded
		}
		return "", nil, nil
	}
	if old, err = c.before.resolve(at, false); err != nil || isDir(old) && c.shares(a, old) {
		return at, old, err
	}
	old.close()
	return "", nil, nil
}

// shares tells whether two directories have their bottom in common.
func (c *capture) shares(a, b *entry) bool {
	return sameInode(a.dir.parts[len(a.dir.parts)-1].f, b.dir.parts[len(b.dir.parts)-1].f)
}

// attributes compares a directory's own.
func (c *capture) attributes(x, y *entry, p *spot) error {
	if y != nil {
		same, err := sameAttributes(x, y, false)
		if err != nil {
			return err
		}
		if same && x.st.Mtim == y.st.Mtim {
			if same, err := sameShownFlags(x, y, c.v.Open, x.layer == 0); same || err != nil {
				return err
			}
		}
		c.more = c.more || !same // a time is no change
	}
	return p.make()
}
