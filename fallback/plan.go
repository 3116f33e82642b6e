package fallback

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"deployx/snapshot"
)

// chain is the layers that make up a view.
func (d *Driver) chain(s *shown) ([]snapshot.LayerID, error) {
	if s.hidden {
		return nil, nil
	}
	ids := slices.Clone(s.Layers)
	l, err := d.layer(s.Open)
	if err == nil && len(l.changes) > 0 {
		ids = append(ids, s.Open)
	}
	return ids, ignoreNoLayer(err)
}

// net is what has to change in the tree so that it shows v: what the layers
// that are not in v did is undone, newest first, and what v's other layers did
// is done again. A path that ends as it is now is not in it.
func (d *Driver) net(v *shown) ([]change, error) {
	m, err := d.moved(v)
	if err != nil {
		return nil, err
	}
	return m.changes()
}

// moved follows the paths on the way from what is shown to v.
func (d *Driver) moved(v *shown) (*mover, error) {
	m := &mover{d: d, to: map[string]*entry{}}
	from, err := d.chain(&d.ix.view)
	if err != nil {
		return m, err
	}
	to, err := d.chain(v)
	if err != nil {
		return m, err
	}
	k := 0
	for k < len(from) && k < len(to) && from[k] == to[k] {
		k++
	}
	for _, id := range slices.Backward(from[k:]) {
		if err := m.step(id, func(c *change) (was, is *entry) { return c.post, c.pre }); err != nil {
			return m, err
		}
	}
	for _, id := range to[k:] {
		if err := m.step(id, func(c *change) (was, is *entry) { return c.pre, c.post }); err != nil {
			return m, err
		}
	}
	return m, nil
}

// mover follows paths through layers.
type mover struct {
	d        *Driver
	to       map[string]*entry
	conflict []string
}

func (m *mover) step(id snapshot.LayerID, side func(*change) (was, is *entry)) error {
	l, err := m.d.layer(id)
	if err != nil {
		return err
	}
	for i := range l.changes {
		c := &l.changes[i]
		was, is := side(c)
		now, ok := m.to[c.path]
		if !ok {
			now = m.d.entryAt(c.path)
		}
		if ok, err := m.d.follows(now, was); err != nil {
			return err
		} else if !ok {
			m.conflict = append(m.conflict, c.path)
		}
		m.to[c.path] = is
	}
	return nil
}

// follows says that a layer which found was can be put on top of now. That
// something else has gone into a directory, or out of it, is no obstacle.
func (d *Driver) follows(now, was *entry) (bool, error) {
	if now != nil && was != nil && now.isDir() && was.isDir() {
		return now.sameOwnership(was), nil
	}
	return d.equal(now, was)
}

// changes are what remains, in path order. Base can have been changed while
// the tree was nobody's; what would lose such a change is refused.
func (m *mover) changes() ([]change, error) {
	if len(m.conflict) > 0 {
		slices.Sort(m.conflict)
		return nil, &snapshot.Error{
			Code:  snapshot.CodeDriftConflict,
			Msg:   "these were changed by others since, and the layer changes them too",
			Hint:  "put them back to what they were, or go on without the redo",
			Paths: slices.Compact(m.conflict),
		}
	}
	var cs []change
	for path, e := range m.to {
		now := m.d.entryAt(path)
		same, err := m.d.equal(now, e)
		if err != nil {
			return nil, err
		}
		if !same {
			cs = append(cs, change{path, now, e})
		}
	}
	slices.SortFunc(cs, byPath)
	return cs, nil
}

// entryAt is what the index has at path, nil for nothing.
func (d *Driver) entryAt(path string) *entry {
	n := d.ix.root.find(path)
	if n == nil {
		return nil
	}
	e := n.entry
	return &e
}

// equal says that a restore has nothing to do between a and b. Bytes are
// compared when their objects are not the same: a file that was changed and
// changed back has two.
func (d *Driver) equal(a, b *entry) (bool, error) {
	if !sameButBytes(a, b) {
		return false, nil
	}
	if a == nil || !a.isRegular() {
		return true, nil
	}
	return d.store.same(a.obj, b.obj, a.size)
}

// plan sorts net changes by how they are made: by a rename of something staged,
// of something old, of both, or in place.
type plan struct {
	d       *Driver
	net     map[string]*change
	keep    map[string]bool // directories that go, but hold what is excluded
	tops    []top
	inside  []staged // below tops
	settles map[string]*change
	covered map[string]int // by the top of that number; below it all goes with it
}

// top is a path that changes by one rename: what is below it changes with it.
type top struct {
	*change
	n int
}

type staged struct {
	*change
	top int
}

func (d *Driver) plan(net []change, keep map[string]bool) (*plan, error) {
	p := &plan{
		d: d, net: map[string]*change{}, keep: keep,
		settles: map[string]*change{}, covered: map[string]int{},
	}
	for i := range net {
		p.net[net[i].path] = &net[i]
	}
	for i := range net {
		if err := p.sort(&net[i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// sort takes the changes in path order: a directory before what it holds.
func (p *plan) sort(c *change) error {
	dir, _ := split(c.path)
	if n, ok := p.covered[dir]; ok && c.path != "." {
		p.covered[c.path] = n
		if c.post != nil {
			p.inside = append(p.inside, staged{c, n})
		}
		return nil
	}
	replace, err := p.replaces(c)
	if err != nil {
		return err
	}
	switch {
	case c.pre != nil && c.pre.isDir() && p.keep[c.path]:
		if c.post != nil && !c.post.isDir() {
			return &snapshot.Error{
				Code: snapshot.CodeUnsupported,
				Msg:  fmt.Sprintf("%q was no directory, and now is one that holds excluded entries", c.path),
				Hint: "move them away first",
			}
		}
		if c.post != nil {
			p.settles[c.path] = c
		}
	case replace:
		n := len(p.tops)
		p.tops = append(p.tops, top{c, n})
		p.parent(dir)
		if c.pre != nil && c.pre.isDir() || c.post != nil && c.post.isDir() {
			p.covered[c.path] = n
		}
	default:
		p.settles[c.path] = c
	}
	return nil
}

// parent notes that the times of a directory must be set in the end, and its
// mode if it has to be opened for us.
func (p *plan) parent(dir string) {
	if p.settles[dir] != nil {
		return
	}
	c := p.net[dir]
	if c == nil {
		e := p.d.entryAt(dir)
		c = &change{dir, e, e}
	}
	if c.post != nil {
		p.settles[dir] = c
	}
}

// replaces says that a path cannot be changed in place: another type, other
// bytes, or another file behind it.
func (p *plan) replaces(c *change) (bool, error) {
	a, b := c.pre, c.post
	if a == nil || b == nil || a.kind() != b.kind() {
		return true, nil
	}
	if a.isDir() {
		return false, nil
	}
	if a.link != b.link || a.target != b.target || a.rdev != b.rdev || a.size != b.size {
		return true, nil
	}
	if !a.isRegular() {
		return false, nil
	}
	same, err := p.d.store.same(a.obj, b.obj, a.size)
	return !same, err
}

// bytes is how much the staged files take at most, and how many there are.
func (p *plan) bytes() (bytes, entries int64) {
	add := func(e *entry) {
		if e == nil {
			return
		}
		entries++
		if e.isRegular() && e.obj != (object{}) {
			bytes += p.d.store.allocated(e.obj, e.size)
		}
	}
	for _, t := range p.tops {
		add(t.post)
	}
	for _, s := range p.inside {
		add(s.post)
	}
	return bytes, entries
}

// stagedPath is where a path below a top is made.
func (p *plan) stagedPath(s staged) string {
	t := p.tops[s.top]
	return stageName(t.n) + strings.TrimPrefix(s.path, t.path)
}

func stageName(n int) string { return fmt.Sprintf("%d", n) }

// sources finds, for each link number, a file that stays where it is and keeps
// its bytes: new names of it are linked to it.
func (p *plan) sources() map[uint64]string {
	want := map[uint64]bool{}
	for _, c := range p.net {
		if c.post != nil && !c.post.isDir() {
			want[c.post.link] = true
		}
	}
	found := map[uint64]string{}
	if len(want) == 0 {
		return found
	}
	p.d.ix.root.each(".", func(path string, n *node) {
		if n.isDir() || !want[n.link] {
			return
		}
		c := p.net[path]
		if c == nil || p.settles[path] == c {
			found[n.link] = path
		}
	})
	return found
}

func ignoreNoLayer(err error) error {
	if errors.Is(err, errNoLayer) {
		return nil
	}
	return err
}
