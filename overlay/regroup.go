package overlay

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A grouping is what a capture knows of the upper's files that have several names. A
// file is compared by all of its names or by none, and all are kept anew or none:
// a copy of some would be a file beside the one that the layers have for the others.
type grouping struct {
	links  map[uint64]uint64          // files that the scan came to, by inode: the names that it did not come to
	with   map[string]map[string]bool // by directory: names to be compared for others of their file's
	named  map[uint64][]string        // the upper's files by inode, if they were asked for
	groups map[fileOf]outcome
}

// fileOf is a file that is shown, by inode, with one that the layers have.
type fileOf struct {
	shown uint64
	was   inode
}

// outcome is what was found for one of the names.
type outcome struct {
	kind   snapshot.ChangeKind
	linked bool // its names are not those that it had
}

// visits notes that a name of a file will be compared.
func (c *capture) visits(st *unix.Statx_t) {
	if st.Nlink == 1 {
		return
	}
	if c.links == nil {
		c.links = map[uint64]uint64{}
	}
	if _, ok := c.links[st.Ino]; !ok {
		c.links[st.Ino] = uint64(st.Nlink)
	}
	c.links[st.Ino]--
}

// complete has files that the scan did not come to by all names compared by all: one name
// may be in a directory that was moved, which moves no time of the file. The kernel
// keeps a name of its own in the upper's index.
func (c *capture) complete() error {
	for ino, more := range c.links {
		if more == 0 {
			continue
		}
		names, err := c.namesOf(ino)
		if err != nil {
			return err
		}
		for _, path := range names {
			c.alsoCompare(path)
		}
	}
	return nil
}

func (c *capture) alsoCompare(path string) {
	if c.with == nil {
		c.with = map[string]map[string]bool{}
	}
	for ; path != "."; path = filepath.Dir(path) {
		dir := filepath.Dir(path)
		if c.with[dir] == nil {
			c.with[dir] = map[string]bool{}
		}
		c.with[dir][filepath.Base(path)] = true
	}
}

// namesOf are the names that a file of the upper has there.
func (c *capture) namesOf(ino uint64) ([]string, error) {
	if c.named == nil {
		c.named = map[uint64][]string{}
		if c.after.roots[0] == nil {
			return nil, nil
		}
		if err := collectNames(c.after.roots[0], ".", c.named); err != nil {
			return nil, err
		}
	}
	return c.named[ino], nil
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
	names, err := c.namesOf(a.st.Ino)
	return slices.ContainsFunc(names, c.only), err
}

// compared tells how a file differs, and whether its names do: one that got another is
// kept anew with it, to be one file again.
func (c *capture) compared(a, b *entry) (kind snapshot.ChangeKind, linked bool, err error) {
	links, err := c.linksOf(a)
	if err != nil {
		return "", false, err
	}
	if links <= 1 || a.st.Ino == b.st.Ino {
		kind, err = c.compare(a, b)
		return kind, false, err
	}
	of := fileOf{a.st.Ino, inode{b.st.Dev, b.st.Ino}}
	if found, ok := c.groups[of]; ok && a.layer == 0 {
		return found.kind, found.linked, nil
	}
	if kind, err = c.compare(a, b); err == nil {
		linked, err = c.regrouped(a, b, links)
	}
	if err == nil && a.layer == 0 {
		if c.groups == nil {
			c.groups = map[fileOf]outcome{}
		}
		c.groups[of] = outcome{kind, linked}
	}
	return kind, linked, err
}

// regrouped tells whether the names of a file, of which there are so many, are not just
// those that the layers have of b: one of as many was moved, say.
func (c *capture) regrouped(a, b *entry, links uint64) (bool, error) {
	if a.layer != 0 {
		return links != b.st.Nlink, nil
	}
	names, err := c.namesOf(a.st.Ino)
	if err != nil || uint64(len(names)) != links {
		return true, err
	}
	one := inode{b.st.Dev, b.st.Ino}
	for _, name := range names {
		was, err := c.was(name)
		if err != nil {
			return false, err
		}
		same := was != nil && !isDir(was) && inode{was.st.Dev, was.st.Ino} == one
		was.close()
		if !same {
			return true, nil
		}
	}
	if links == b.st.Nlink {
		return false, nil
	}
	n := uint64(0) // some are hidden, or there are more
	w := aliasWalk{ctx: c.ctx, layers: map[int]bool{b.layer: true}, inodes: map[inode]bool{one: true}, visit: func(string, *entry) error {
		n++
		return nil
	}}
	err = w.run(c.before)
	return n != links, err
}

// was is what the layers have for what is shown at a path, where a directory on the way
// was moved in the place from which it came; nil if there is nothing.
func (c *capture) was(path string) (*entry, error) {
	x, err := c.after.root()
	if err != nil {
		return nil, err
	}
	y, err := c.before.root()
	if err != nil {
		return nil, err
	}
	at, t := ".", c.todo
	for name := range strings.SplitSeq(path, "/") {
		at = join(at, name)
		a, b, in, err := c.down(x, y, t, name, at)
		x.close()
		y.close()
		if err != nil {
			a.close()
			b.close()
			return nil, err
		}
		x, y, t = a, b, in
		if !isDir(x) {
			break
		}
	}
	x.close()
	return y, nil
}

// down follows one name in both states.
func (c *capture) down(x, y *entry, t *todo, name, path string) (a, b *entry, in *todo, err error) {
	st, there, err := c.upperStat(x, name)
	if err != nil {
		return nil, nil, nil, err
	}
	if a, err = x.dir.lookup(name, false); err != nil {
		return nil, nil, nil, err
	}
	if isDir(y) {
		if b, err = y.dir.lookup(name, false); err != nil {
			return a, nil, nil, err
		}
	}
	if !isDir(a) {
		return a, b, nil, nil
	}
	placed := there && c.ix.Placed[identity{st.Ino, stampOf(st.Btime)}]
	_, old, in, err := c.matched(a, b, t.kid(name), path, placed)
	if old != b {
		b.close()
	}
	return a, old, in, err
}

// linksOf counts the names of a file, without the one that the kernel keeps in the
// live upper's index.
func (c *capture) linksOf(e *entry) (uint64, error) {
	if e.layer != 0 || e.st.Nlink == 1 || !c.indexed {
		return e.st.Nlink, nil
	}
	n, err := xattr(e.f, private+"nlink")
	if n == nil || err != nil {
		return e.st.Nlink, err
	}
	return e.st.Nlink - 1, nil
}
