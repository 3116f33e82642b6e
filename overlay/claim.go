package overlay

import (
	"context"
	"slices"

	"deployx/snapshot"
)

// A claim is a merge that goes on: nobody else merges any of its units, so that
// runs lie beside or inside one another and never overlap in part.
type claim struct {
	window
	dirs []string      // of the units
	over chan struct{} // closed at its end
}

// claim claims what choose takes of the units that nobody is at; nil if it takes
// none. Units on both sides of cut are not merged with one another. others are the
// merges that go on among the units.
func (m *merging) claim(units []unit, cut int, choose func(free []window, others []*claim) (window, bool)) *claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	var free []window
	var others []*claim
	at := window{}
	for i, u := range units {
		o := m.holder(u)
		if o != nil && !slices.Contains(others, o) {
			others = append(others, o)
		}
		if o != nil || i == cut {
			free = append(free, at)
			at = window{from: i, to: i}
		}
		if o != nil {
			at.from++
		}
		at.to = i + 1
	}
	w, ok := choose(append(free, at), others)
	if !ok {
		return nil
	}
	c := &claim{window: w, over: make(chan struct{})}
	for _, u := range units[w.from:w.to] {
		c.dirs = append(c.dirs, u.dir)
	}
	m.claims = append(m.claims, c)
	return c
}

// holder is the merge that takes a unit.
func (m *merging) holder(u unit) *claim {
	for _, c := range m.claims {
		if slices.Contains(c.dirs, u.dir) {
			return c
		}
	}
	return nil
}

func (m *merging) end(c *claim) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.claims = slices.DeleteFunc(m.claims, func(o *claim) bool { return o == c })
	close(c.over)
}

// mergeClaimed merges what has been claimed, and ends the claim.
func (d *Driver) mergeClaimed(ctx context.Context, layers []snapshot.LayerID, units []unit, c *claim) error {
	defer d.merging.end(c)
	return d.mergeUnits(ctx, layers, units, c.window)
}
