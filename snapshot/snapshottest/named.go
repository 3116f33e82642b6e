package snapshottest

import (
	"slices"
	"testing"

	"deployx/internal/testns"
)

// sequence is a story about one kind of change: base is what is there, each
// step what one command does to it.
type sequence struct {
	name  string
	base  []Op
	steps [][]Op
}

// sequences are all named sequences. Each does a thing that some layered tree
// has got wrong.
func sequences() []sequence {
	return slices.Concat(renames(), replacements(), links(), contents(), attributes(), specials(), names())
}

// An origin says where a sequence's base is kept when its steps begin. The same
// rename is another matter in base, in a sealed layer and in the open one.
type origin struct {
	name          string
	layer, pushed bool // the base is made above base; it is sealed before the steps
	each          bool // every step is a layer of its own
}

func origins() []origin {
	return []origin{
		{name: "base,layers", each: true},
		{name: "layer,one", layer: true, pushed: true, each: false},
		{name: "layer,layers", layer: true, pushed: true, each: true},
		{name: "base,one", each: false},
		{name: "open,one", layer: true, pushed: false, each: false},
	}
}

// Named runs every named sequence from every origin; emulated, from base and from a
// layer in turn.
func (o Options) Named(t *testing.T, open Open) {
	o = o.placed(t)
	for i, s := range sequences() {
		from := origins()[:o.shorter(5)]
		if o.held && envInt(t, EnvSoak, 0) == 0 {
			from = from[i%3:][:1]
		}
		if testns.Emulated() {
			from = from[i%2:][:1]
		}
		t.Run(s.name, func(t *testing.T) {
			for _, from := range from {
				t.Run(from.name, func(t *testing.T) { o.tell(t, open, s, from) })
			}
		})
	}
}

// tell runs one sequence forward, then back layer by layer, then to every
// state in both directions with a new driver.
func (o Options) tell(t *testing.T, open Open, s sequence, from origin) {
	var r *rig
	if from.layer {
		r = newRig(t, o, open)
		r.do(s.base...)
	} else {
		r = newRig(t, o, open, s.base...)
	}
	if from.pushed {
		r.push()
	}
	for _, step := range s.steps {
		r.do(step...)
		if from.each {
			r.push()
		}
	}
	r.push()
	r.checkState(r.states[key(r.view.Layers)])
	for range r.view.Layers {
		r.rollback(1)
	}
	r.reopen()
	r.sweep()
}
