package snapshottest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// Subject is a driver with what it cannot do exactly.
type Subject struct {
	Open    Open
	Options Options
}

// Differential runs the same long random sequences on two drivers and demands
// the same trees and the same Changes, where a renamed directory and what is
// gone and new are the same. Operations that one of the two cannot do exactly
// are left out.
func Differential(t *testing.T, a, b Subject) {
	a.Options, b.Options = a.Options.placed(t), b.Options.placed(t)
	for _, seed := range a.Options.seeds(t) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Logf("repeat with %s=%d %s=%d", EnvSeed, seed, EnvSoak, envInt(t, EnvSoak, 0))
			g := newGen(seed)
			g.avoid = func(op Op) bool { return a.Options.inexact(op) || b.Options.inexact(op) }
			base := g.ops(nil, 40)
			p := pair{newRig(t, a.Options, a.Open, base...), newRig(t, b.Options, b.Open, base...)}
			for range a.Options.steps(t) {
				p.step(g)
			}
			p.push()
			p.a.sweep()
			p.b.sweep()
		})
	}
}

// inexact tells the operations after which a driver with these options may
// differ from one without.
func (o Options) inexact(op Op) bool {
	switch op.Verb {
	case "link":
		return o.SplitsHardLinks
	case "mkchar":
		return o.NoWhiteoutDevices && op.N == 0
	case "chattr":
		return o.LosesFlags
	case "open", "quiet", "mapped":
		return o.OpenTouches
	}
	return false
}

// pair is two rigs in lockstep.
type pair struct{ a, b *rig }

// step does one random thing with both.
func (p pair) step(g *gen) {
	p.a.ready()
	p.b.ready()
	switch n := g.IntN(100); {
	case n < 60:
		ops := g.ops(p.a.picture(p.a.tree.root), 1+g.IntN(6))
		p.a.do(ops...)
		p.b.do(ops...)
		p.sameTrees()
	case n < 80:
		p.push()
	case n < 95:
		p.goTo(g)
	default:
		p.a.reopen()
		p.b.reopen()
	}
}

func (p pair) push() {
	p.a.t.Helper()
	if a, b := p.a.push(), p.b.push(); a != b {
		p.a.t.Fatalf("a layer was made by one driver only: %v, %v", a, b)
	}
	p.sameTrees()
	p.sameChanges(nil, nil, p.a.view.Layers, p.b.view.Layers)
	if n := len(p.a.view.Layers); n > 1 {
		p.sameChanges(p.a.view.Layers[:n/2], p.b.view.Layers[:n/2], p.a.view.Layers[n/2:], p.b.view.Layers[n/2:])
	}
}

// goTo goes to one of the states: both rigs keep the same ones in the same
// order, unless one of the drivers was dirty and the other was not.
func (p pair) goTo(g *gen) {
	p.a.t.Helper()
	p.a.seal()
	p.b.seal()
	if len(p.a.order) != len(p.b.order) {
		p.a.t.Fatalf("dirty by one driver only: %d states and %d", len(p.a.order), len(p.b.order))
	}
	n := g.IntN(len(p.a.order))
	p.a.goTo(p.a.states[p.a.order[n]].layers)
	p.b.goTo(p.b.states[p.b.order[n]].layers)
	p.sameTrees()
}

func (p pair) sameTrees() {
	p.a.t.Helper()
	ds := treecmp.Diff(p.a.picture(p.a.tree.root), p.b.picture(p.b.tree.root), treecmp.Options{
		AnyNlink: true, HoleSlack: holeSlack, WantTime: p.a.tree.stepOf, GotTime: p.b.tree.stepOf,
	})
	if len(ds) > 0 {
		p.a.t.Fatalf("the trees of the two drivers differ:\n%v", ds)
	}
}

// sameChanges compares what the two say that layers changed on top of below.
func (p pair) sameChanges(belowA, belowB, layersA, layersB []snapshot.LayerID) {
	p.a.t.Helper()
	a, err := changes(p.a.ctx(), p.a.d, belowA, layersA)
	p.a.must("Changes", err)
	b, err := changes(p.b.ctx(), p.b.d, belowB, layersB)
	p.b.must("Changes", err)
	allA, allB := p.a.difference(belowA, layersA), p.b.difference(belowB, layersB)
	dirs := renamed(slices.Concat(a, b))
	wantA, wantB := expand(a, allA, dirs), expand(b, allB, dirs)
	for _, path := range slices.Sorted(maps.Keys(union(wantA, wantB))) {
		if allA[path].Kind != allB[path].Kind {
			continue // two files of one step, made in one tick of the clock here and in two there
		}
		if wantA[path] != wantB[path] {
			p.a.t.Errorf("Changes differ at %q:\n   %s\n   %s", path, told(wantA[path]), told(wantB[path]))
		}
	}
	if p.a.t.Failed() {
		p.a.t.FailNow()
	}
}

// difference is what layers changed on top of below, by the pictures.
func (r *rig) difference(below, layers []snapshot.LayerID) map[string]snapshot.Change {
	return difference(r.states[key(below)].tree, r.states[key(slices.Concat(below, layers))].tree)
}

// renamed are the old and new places of renamed directories.
func renamed(cs []snapshot.Change) (dirs []string) {
	for _, c := range cs {
		if c.Kind == snapshot.ChangeRenamed {
			dirs = append(dirs, c.From, c.Path)
		}
	}
	return dirs
}

// expand gives a list of changes as a map, with what lies in renamed
// directories as the pictures have it, and without what need not be told.
func expand(cs []snapshot.Change, all map[string]snapshot.Change, dirs []string) map[string]snapshot.Change {
	inDirs := func(path string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") })
	}
	m := map[string]snapshot.Change{}
	for _, c := range cs {
		if c.Type == snapshot.TypeDir {
			c.Size = 0
		}
		if all[c.Path].Kind != mayTell && !inDirs(c.Path) {
			m[c.Path] = c
		}
	}
	for path, c := range all {
		if c.Kind != mayTell && inDirs(path) {
			m[path] = c
		}
	}
	return m
}
