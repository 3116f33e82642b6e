package snapshottest

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// Random runs random sequences. The seeds are fixed, so that a run can be
// repeated; with EnvSoak there are more of them, longer and new each time.
func (o Options) Random(t *testing.T, open Open) {
	o = o.placed(t)
	for _, seed := range o.seeds(t) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Logf("repeat with %s=%d %s=%d", EnvSeed, seed, EnvSoak, envInt(t, EnvSoak, 0))
			g := newGen(seed)
			r := newRig(t, o, open, g.ops(nil, 40)...)
			for range o.steps(t) {
				g.step(r)
			}
			r.push()
			r.sweep()
		})
	}
}

func (o Options) seeds(t *testing.T) []uint64 {
	t.Helper()
	if seed := envInt(t, EnvSeed, 0); seed != 0 {
		return []uint64{uint64(seed)}
	}
	soak := envInt(t, EnvSoak, 0)
	if soak == 0 {
		return []uint64{1, 2, 3}[:o.shorter(3)]
	}
	var all []uint64
	for i := range soak * 3 {
		all = append(all, uint64(time.Now().UnixNano()+i))
	}
	return all
}

// steps is the length of a random sequence.
func (o Options) steps(t *testing.T) int {
	t.Helper()
	if envInt(t, EnvSoak, 0) > 0 {
		return 400
	}
	return o.shorter(120)
}

// shorter is n, or a part of it where the suite is to be quick.
func (o Options) shorter(n int) int {
	switch {
	case o.quick:
		return (n + 4) / 5
	case testing.Short():
		return (n + 2) / 3
	}
	return n
}

// step does one random thing with the rig.
func (g *gen) step(r *rig) {
	r.t.Helper()
	switch n := g.IntN(100); {
	case n < 60:
		r.ready()
		r.do(g.ops(r.picture(r.tree.root), 1+g.IntN(6))...)
	case n < 80:
		r.ready()
		r.push()
	case n < 87:
		layers := r.seal()
		r.goTo(layers[:len(layers)-g.IntN(len(layers)+1)])
	case n < 93:
		r.goTo(r.states[r.order[g.IntN(len(r.order))]].layers)
	case n < 95:
		r.goTo(nil)
	case n < 98:
		r.reopen()
	default:
		r.ready()
		r.showAgain()
	}
}

// ready shows base again if the tree is hidden.
func (r *rig) ready() {
	r.t.Helper()
	if r.view.Open == "" {
		r.show(nil, r.states[key(nil)].tree)
	}
}

// newGen makes a generator of operations.
func newGen(seed uint64) *gen {
	g := &gen{Rand: rand.New(rand.NewPCG(seed, 0))}
	for _, k := range g.kinds() {
		g.total += k.n
	}
	return g
}
