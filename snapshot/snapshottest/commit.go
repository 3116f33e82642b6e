package snapshottest

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"deployx/snapshot"
)

// Commit runs random sequences in which the oldest layers become part of base
// again and again: the tree must show the same before and afterwards, and so must
// every state that stands on what was committed; what was before is gone. At the
// end all is committed, and the plain directory that is left is what a plain
// directory is that took the same operations.
func (o Options) Commit(t *testing.T, open Open) {
	o = o.placed(t)
	for _, seed := range o.seeds(t) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Logf("repeat with %s=%d %s=%d", EnvSeed, seed, EnvSoak, envInt(t, EnvSoak, 0))
			g := newGen(seed)
			r := newRig(t, o, open, g.ops(nil, 40)...)
			if _, ok := r.d.(snapshot.Committer); !ok {
				t.Skip("this driver cannot commit")
			}
			for range o.steps(t) {
				if g.IntN(100) < 92 {
					g.step(r)
					continue
				}
				r.ready()
				r.push()
				if n := len(r.view.Layers); n > 0 {
					r.commit(1 + g.IntN(n))
				}
			}
			r.ready()
			r.push()
			r.commit(len(r.view.Layers))
			r.goTo(nil)
			r.compare()
			r.sweep()
		})
	}
}

// commit makes the oldest n layers of the view, whose open layer is clean, part
// of base.
func (r *rig) commit(n int) {
	r.t.Helper()
	c := r.d.(snapshot.Committer)
	layers := slices.Clone(r.view.Layers)
	want := r.states[key(layers)].tree
	r.tell("commit %d of %s", n, r.names(layers))
	old, bottom := layers[:n], layers[:n]
	id, err := c.Settle(r.ctx(), bottom)
	r.must("Settle", err)
	r.same("after Settle", want)
	if id != "" {
		bottom = []snapshot.LayerID{id}
		r.standOn(old, bottom)
		layers = slices.Concat(bottom, layers[n:])
		r.mustBeShownAnew(c, bottom)
		r.show(layers, want)
	}
	err = c.Commit(r.ctx(), bottom, nil)
	if snapshot.CodeOf(err) == snapshot.CodeTreeBusy && err != nil {
		r.same("after a Commit that was refused", want)
		r.show(layers, want)
		err = c.Commit(r.ctx(), bottom, nil)
	}
	r.must("Commit", err)
	r.same("after Commit", want)
	r.must("Commit again", c.Commit(r.ctx(), bottom, nil))
	r.same("after Commit again", want)
	r.standOn(bottom, nil)
	r.view.Layers = layers[len(bottom):]
	if r.behind != nil {
		r.behind = r.states[key(r.view.Layers)]
	}
	if len(r.view.Layers) == 0 {
		r.hide()
		r.same("hidden after Commit", want)
	} else {
		r.show(r.view.Layers, want)
	}
	for _, l := range slices.Concat(old, bottom) {
		r.must("Discard", r.d.Discard(r.ctx(), l))
	}
	// Not under a mount: when the link count of a file of base falls there, overlayfs
	// may show two names of its copy as two files.
	if e, ok := r.d.(interface{ EmptyTrash(context.Context) error }); ok && r.view.Open == "" {
		r.must("EmptyTrash", e.EmptyTrash(r.ctx()))
	}
	r.clean = r.same("after Discard", want) // but for link counts
}

// mustBeShownAnew: base may not change while the tree shows a view that is not
// settled.
func (r *rig) mustBeShownAnew(c snapshot.Committer, bottom []snapshot.LayerID) {
	r.t.Helper()
	if err := c.Commit(r.ctx(), bottom, nil); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		r.t.Fatalf("Commit under a view that is not settled: %v", err)
	}
}

// standOn puts to in the place of from at the bottom of every state; states that
// do not stand on from are gone.
func (r *rig) standOn(from, to []snapshot.LayerID) {
	states, order := map[string]*state{}, []string(nil)
	for _, k := range r.order {
		s := r.states[k]
		if len(s.layers) < len(from) || !slices.Equal(s.layers[:len(from)], from) {
			if len(to) > 0 && len(s.layers) == 0 { // base is still there
				states[k], order = s, append(order, k)
			}
			continue
		}
		s.layers = slices.Concat(to, s.layers[len(from):])
		states[key(s.layers)], order = s, append(order, key(s.layers))
	}
	r.states, r.order = states, order
}
