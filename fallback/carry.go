package fallback

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Carrier = (*Driver)(nil)

// Carry makes a layer of what some paths are in one stack and were in another.
// It stores nothing: both sides' bytes are in the store. See snapshot.Carrier.
func (d *Driver) Carry(ctx context.Context, from, to []snapshot.LayerID, changes []snapshot.Change) (snapshot.LayerID, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	is, err := d.stateOf(from)
	if err != nil {
		return "", err
	}
	was, err := d.stateOf(to)
	if err != nil {
		return "", err
	}
	l := &layer{seq: d.ix.seq, changes: carried(is, was, changes)}
	if len(l.changes) == 0 {
		return "", nil
	}
	if d.unlink(l.changes, was) {
		if err := d.commit(&tx{}, false); err != nil { // the numbers are taken
			return "", err
		}
	}
	id := snapshot.NewLayerID()
	if err := l.save(d.layerPath(id)); err != nil {
		return "", fmt.Errorf("write carried layer: %w", err)
	}
	crash.Point("fallback.carried")
	d.layers[id] = l
	return id, nil
}

// A state is what a stack makes of the tree: what differs from the index, and
// for all else the index.
type state struct {
	d       *Driver
	differs map[string]*entry
}

// stateOf works out the state of layers alone.
func (d *Driver) stateOf(layers []snapshot.LayerID) (state, error) {
	m, err := d.moved(&shown{View: snapshot.View{Layers: layers}})
	if err == nil && len(m.conflict) > 0 {
		_, err = m.changes() // says so
	}
	return state{d, m.to}, err
}

// at is what the state has at a path, nil for nothing.
func (s state) at(path string) *entry {
	if e, ok := s.differs[path]; ok {
		return e
	}
	return s.d.entryAt(path)
}

// carried are the changes that lead from was to is at the paths that are named,
// and to the times of the directories in which entries came or went.
func carried(is, was state, named []snapshot.Change) []change {
	found := map[string]change{}
	for _, c := range named {
		found[c.Path] = change{c.Path, was.at(c.Path), is.at(c.Path)}
	}
	for _, c := range named {
		if c.Kind == snapshot.ChangeMetadata || c.Kind == snapshot.ChangeModified || c.Path == "." {
			continue
		}
		dir, _ := split(c.Path)
		if _, ok := found[dir]; ok {
			continue
		}
		a, b := was.at(dir), is.at(dir)
		if a != nil && b != nil && a.isDir() && b.isDir() {
			timed := *a
			timed.mtime = b.mtime
			found[dir] = change{dir, a, &timed}
		}
	}
	list := slices.DeleteFunc(slices.Collect(maps.Values(found)), func(c change) bool { return same(c.pre, c.post) })
	slices.SortFunc(list, byPath)
	return list
}

// unlink gives carried files new link numbers where a name that stays behind has
// theirs and is not the same file any more: one of two names was carried, and
// what the other showed is undone.
func (d *Driver) unlink(changes []change, was state) (some bool) {
	names := map[uint64][]*change{}
	for i := range changes {
		if e := changes[i].post; e != nil && !e.isDir() && e.link != 0 {
			names[e.link] = append(names[e.link], &changes[i])
		}
	}
	if len(names) == 0 {
		return false
	}
	carried := map[string]bool{}
	for i := range changes {
		carried[changes[i].path] = true
	}
	was.each(func(path string, e *entry) {
		mine := names[e.link]
		if e.isDir() || len(mine) == 0 || carried[path] || same(e, mine[0].post) {
			return
		}
		fresh := max(d.ix.link, 1)
		d.ix.link, some = fresh+1, true
		for _, c := range mine {
			post := *c.post
			post.link = fresh
			c.post = &post
		}
		delete(names, e.link)
	})
	return some
}

// each visits every path of the state, in no order.
func (s state) each(visit func(path string, e *entry)) {
	s.d.ix.root.each(".", func(path string, n *node) {
		if _, ok := s.differs[path]; !ok {
			visit(path, &n.entry)
		}
	})
	for path, e := range s.differs {
		if e != nil {
			visit(path, e)
		}
	}
}
