package snapshottest

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"deployx/snapshot"
)

// Contract checks, one by one, what the doc comments of snapshot.Driver
// promise beside the trees themselves.
func (o Options) Contract(t *testing.T, open Open) {
	o = o.placed(t)
	for name, check := range map[string]func(*rig){
		"clean at first":         (*rig).cleanAtFirst,
		"hidden":                 (*rig).hidden,
		"written while hidden":   (*rig).writtenWhileHidden,
		"discard":                (*rig).discard,
		"many layers":            (*rig).manyLayers,
		"usage":                  (*rig).usage,
		"open":                   (*rig).openPaths,
		"changes":                (*rig).changesCalls,
		"unknown layer":          (*rig).unknownLayer,
		"same view, other ids":   (*rig).otherIDs,
		"open layer left behind": (*rig).leftBehind,
		"holders":                (*rig).holders,
		"path lookups":           (*rig).lookups,
		"another's swaps":        (*rig).anothersSwaps,
	} {
		t.Run(name, func(t *testing.T) { check(newRig(t, o, open, aTree()...)) })
	}
	t.Run("full disk", func(t *testing.T) { o.full(t, open) })
}

func (r *rig) cleanAtFirst() {
	r.push()
	r.do(read("d/f"), list("."))
	if r.push() {
		r.t.Fatal("a layer without a change")
	}
	r.reopen()
	if r.push() {
		r.t.Fatal("a layer without a change, after reopening")
	}
	r.do(write("d/f", "x"))
	r.reopen()
	if !r.push() {
		r.t.Fatal("a change before reopening is not seen")
	}
	r.showAgain()
	if name := r.d.Name(); name == "" || strings.ContainsAny(name, " /\n") {
		r.t.Errorf("Name: %q is not a word", name)
	}
	r.must("Sync", r.d.Sync(r.ctx()))
}

func (r *rig) hidden() {
	r.do(write("new", "n"))
	r.push()
	kept := r.view.Layers
	r.goTo(nil)
	r.must("Hide again", r.d.Hide(r.ctx()))
	r.reopen()
	r.goTo(kept)
	r.do(write("new", "n2"))
	r.goTo(nil)
	r.ready()
	r.do(write("other way", "o"))
	r.push()
	r.sweep()
}

// writtenWhileHidden: what is written to the hidden tree is base's.
func (r *rig) writtenWhileHidden() {
	r.do(write("layer", "l"))
	r.push()
	r.goTo(nil)
	r.do(write("d/f", "by somebody, to base"), rm("d/g"), mkdir("fresh", 0o755), chmod(".", 0o710))
	r.rebase()
	r.reopen()
	r.ready()
	r.do(appendTo("d/f", "in a layer"), rmdir("fresh"))
	r.push()
	r.sweep()
}

// rebase makes the hidden tree as it is the base, and forgets all layers.
func (r *rig) rebase() {
	r.t.Helper()
	r.states = map[string]*state{}
	r.order = nil
	r.keep(nil, r.picture(r.tree.root))
}

// discard gives up what was rolled back. The rest must not notice.
func (r *rig) discard() {
	r.do(write("one", "1"))
	r.push()
	r.do(write("two", "2"), mv("d", "e"))
	r.push()
	r.do(write("three", "3"))
	r.push()
	gone := slices.Clone(r.view.Layers[1:])
	gone = append(gone, r.view.Open)
	r.rollback(2)
	for _, id := range slices.Concat(gone, gone, []snapshot.LayerID{"never-was"}) {
		r.must(fmt.Sprintf("Discard %s", id), r.d.Discard(r.ctx(), id))
	}
	for k, s := range r.states {
		if len(s.layers) > 1 {
			delete(r.states, k)
			r.order = slices.DeleteFunc(r.order, func(o string) bool { return o == k })
		}
	}
	r.reopen()
	r.do(write("two", "another"), rmAll("d"))
	r.push()
	layers, err := r.d.Layers(r.ctx())
	r.must("Layers", err)
	for _, id := range gone {
		if slices.Contains(layers, id) {
			r.t.Errorf("Layers still lists %s, which was discarded before the driver was reopened", id)
		}
	}
	r.sweep()
}

// manyLayers: each changes a little; then back by one, by many, to none.
func (r *rig) manyLayers() {
	for i := range r.o.shorter(40) {
		r.do(appendTo("d/f", fmt.Sprintf("%d\n", i)), write(fmt.Sprintf("n%d", i), "n"), rm(fmt.Sprintf("n%d", i-2)),
			mv(fmt.Sprintf("dir%d", i-1), fmt.Sprintf("dir%d", i)), mkdir("dir0", 0o755))
		r.push()
		depth, limit := r.d.Depth(r.view)
		if depth < 1 || limit != 0 && depth > limit {
			r.t.Fatalf("Depth of %d layers: %d of %d", len(r.view.Layers), depth, limit)
		}
	}
	all := slices.Clone(r.view.Layers)
	r.rollback(1)
	r.goTo(all[:len(all)/2])
	r.checkState(r.states[key(all)])
	r.checkChanges(all[:3], all[3:len(all)-3])
	r.goTo(nil)
	r.goTo(all)
	r.goTo(nil)
}

func (r *rig) usage() {
	const size = 1 << 20
	r.do(write("big", strings.Repeat("random enough\n", size/14+1)), write("small", "s"))
	r.push()
	open := r.view.Open
	big := r.view.Layers[0]
	u, err := r.d.Usage(r.ctx(), big)
	r.must("Usage", err)
	if u.Inodes < 2 || u.Bytes == 0 {
		r.t.Errorf("Usage of a layer with 1 MiB in two files: %+v", u)
	}
	layers, err := r.d.Layers(r.ctx())
	r.must("Layers", err)
	if !slices.Contains(layers, big) || !slices.Contains(layers, open) {
		r.t.Errorf("Layers %v lacks %s or %s", layers, big, open)
	}
	if slices.Sort(layers); len(slices.Compact(slices.Clone(layers))) != len(layers) {
		r.t.Errorf("Layers names one twice: %v", layers)
	}
}

// openPaths: Open reads files and links, and nothing by way of a link.
func (r *rig) openPaths() {
	r.do(symlink("d", "link"), symlink("/etc/hostname", "out"), write("gone", "g"), mkfifo("fifo"), write("d/new", "new"))
	r.push()
	r.do(rm("gone"), mv("d", "moved"), symlink("moved", "link2"))
	r.push()
	layers := r.view.Layers
	r.checkState(r.states[key(layers)])
	r.checkState(r.states[key(layers[:1])])
	r.checkState(r.states[key(nil)])
	for _, path := range []string{
		"nothing", "gone", "d/f", "link/f", "link2/f", "../state", "/etc/hostname", "moved/f/x", "moved", ".", "", "fifo",
	} {
		f, err := r.d.Open(r.ctx(), layers, path)
		if err == nil {
			b, _ := io.ReadAll(io.LimitReader(f, 100)) //nolint:errcheck // for the message only
			r.t.Errorf("Open %q gives %q and no error", path, b)
			r.must("close", f.Close())
		}
	}
}

func (r *rig) changesCalls() {
	r.do(write("a", "a"), write("z", "z"))
	r.push()
	r.do(rm("a"), rm("z"))
	r.push()
	r.checkChanges(nil, nil)
	r.checkChanges(nil, r.view.Layers) // nothing is left of it
	r.checkChanges(r.view.Layers[:1], nil)
	stop := errors.New("stop")
	calls := 0
	err := r.d.Changes(r.ctx(), nil, r.view.Layers[:1], func(snapshot.Change) error {
		calls++
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		r.t.Errorf("Changes after visit said stop: %d calls, error %v", calls, err)
	}
	if err := r.d.Changes(r.ctx(), nil, []snapshot.LayerID{"never-was"}, func(snapshot.Change) error { return nil }); err == nil {
		r.t.Error("Changes of a layer that never was: no error")
	}
}

// unknownLayer: an error leaves the tree showing what it showed.
func (r *rig) unknownLayer() {
	r.do(write("a", "a"))
	r.push()
	r.do(write("b", "b"))
	before := r.picture(r.tree.root)
	for _, layers := range [][]snapshot.LayerID{
		{"never-was"},
		append(slices.Clone(r.view.Layers), r.view.Open, "never-was"),
	} {
		v := snapshot.View{Layers: layers, Open: snapshot.NewLayerID()}
		if _, err := r.d.Show(r.ctx(), v); err == nil {
			r.t.Fatalf("Show with a layer that never was: no error")
		}
		r.wantShown(r.view.Open)
		r.same("after a Show that failed", before)
	}
	r.do(write("c", "c"))
	r.push()
	r.sweep()
}

// otherIDs: two open layers in turn above the same layers.
func (r *rig) otherIDs() {
	r.do(write("a", "a"))
	r.push()
	one := r.view.Layers
	r.show(one, r.states[key(one)].tree)
	r.show(one, r.states[key(one)].tree)
	r.do(write("a", "b"))
	r.push()
	r.sweep()
}

// anothersSwaps: a driver that stays open, as the agent's does, knows what another
// process's driver has shown meanwhile.
func (r *rig) anothersSwaps() {
	stays := r.open(r.t, r.at.Tree, r.at.State)
	for _, content := range []string{"a", "b", "c", "d"} {
		shown, err := stays.Shown(r.ctx())
		r.must("Shown", err)
		if shown != r.view.Open {
			r.t.Fatalf("after another driver's swap: shown is %q, want %q", shown, r.view.Open)
		}
		r.do(write("a", content))
		r.push()
	}
	r.must("Close", stays.Close())
	r.sweep()
}

// leftBehind: an open layer with changes that is not among the new view's
// layers stays on disk, and comes back as a layer.
func (r *rig) leftBehind() {
	r.do(write("a", "a"), mv("d", "dd"))
	r.push()
	r.do(write("dd/f", "in the open layer"), chmod(".", 0o700))
	left := append(slices.Clone(r.view.Layers), r.view.Open)
	r.goTo(r.view.Layers)
	r.do(write("b", "b"))
	r.goTo(left)
	r.do(write("c", "c"))
	r.push()
	r.sweep()
}
