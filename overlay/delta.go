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
	names, err := c.different(x, y, t)
	if err != nil {
		return err
	}
	for _, name := range names {
		sub := t.kids[name]
		if sub == nil {
			sub = &todo{all: true}
		}
		if err := c.name(x, y, sub, k, p, name, join(path, name)); err != nil {
			return err
		}
	}
	return nil
}

// different are the names to be compared: those of t or, where nothing is known,
// those that one state has and the other has not from the same place.
func (c *capture) different(x, y *entry, t *todo) ([]string, error) {
	set := map[string]bool{}
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

// takes tells whether a path that is no directory is to be taken. A file with
// several names is, if one of them is: who wrote it did so by any.
func (c *capture) takes(a *entry, path string) (bool, error) {
	if c.only(path) {
		return true, nil
	}
	if a == nil || a.layer != 0 || a.st.Nlink == 1 {
		return false, nil
	}
	names, err := c.namesOf(a)
	return slices.ContainsFunc(names, c.only), err
}

// namesOf are the names that a file of the upper has there.
func (c *capture) namesOf(a *entry) ([]string, error) {
	if c.named == nil {
		c.named = map[uint64][]string{}
		if err := collectNames(c.after.roots[0], ".", c.named); err != nil {
			return nil, err
		}
	}
	return c.named[a.st.Ino], nil
}

// regrouped tells whether the names of a file, of which there are so many, are not just
// those that the layers have of b: one of as many was moved, say.
func (c *capture) regrouped(a, b *entry, links uint64) (bool, error) {
	if a.layer != 0 {
		return links != b.st.Nlink, nil
	}
	if was, ok := c.groups[a.st.Ino]; ok {
		return was, nil
	}
	names, err := c.namesOf(a)
	if err != nil {
		return false, err
	}
	one := inode{b.st.Dev, b.st.Ino}
	differ := uint64(len(names)) != links
	for _, name := range names {
		was, err := c.before.resolve(name, false)
		if err != nil {
			return false, err
		}
		differ = differ || was == nil || isDir(was) || inode{was.st.Dev, was.st.Ino} != one
		was.close()
	}
	if !differ && links != b.st.Nlink { // some are hidden, or there are more
		n := uint64(0)
		w := aliasWalk{ctx: c.ctx, layers: map[int]bool{b.layer: true}, inodes: map[inode]bool{one: true}, visit: func(string, *entry) error {
			n++
			return nil
		}}
		err = w.run(c.before)
		differ = n != links
	}
	c.groups[a.st.Ino] = differ
	return differ, err
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
		kind, err := c.compare(a, b)
		if err != nil {
			return false, err
		}
		// One that got another name is kept anew with it, to be one file again.
		links, err := c.links(a)
		if err != nil {
			return false, err
		}
		linked := links > 1 && a.st.Ino != b.st.Ino
		if linked {
			if linked, err = c.regrouped(a, b, links); err != nil {
				return false, err
			}
		}
		if kind == "" && !linked {
			return false, nil
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

// links counts the names of a file, without the one that the kernel keeps in the
// live upper's index.
func (c *capture) links(e *entry) (uint64, error) {
	if e.layer != 0 || e.st.Nlink == 1 || !c.indexed {
		return e.st.Nlink, nil
	}
	n, err := xattr(e.f, private+"nlink")
	if n == nil || err != nil {
		return e.st.Nlink, err
	}
	return e.st.Nlink - 1, nil
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
	counterpart := b
	if t.from != "" || !isDir(b) || t.all {
		id := identity{st.Ino, stampOf(st.Btime)}
		from, old, err := c.counterpart(a, b, t, path, there && c.ix.Placed[id])
		delete(c.ix.Placed, id)
		if err != nil {
			return err
		}
		if old != b {
			defer old.close()
		}
		counterpart, sub.redirect = old, from
	}
	sub.merged = counterpart != nil
	if counterpart == nil || counterpart != b {
		c.more = true
		t = &todo{all: true, self: true, kids: t.kids, from: t.from, was: t.was}
		if t.was != nil && counterpart != nil && sub.redirect == t.from {
			t.all = false
		}
	}
	taken := c.only(path)
	if taken && (counterpart == nil || counterpart != b) {
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
	return sub.finish()
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
		if err != nil || same && x.st.Mtim == y.st.Mtim {
			return err
		}
		c.more = c.more || !same // a time is no change
	}
	return p.make()
}
