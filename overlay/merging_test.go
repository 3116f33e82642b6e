package overlay

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// simulate stacks layers of given weights and merges what is worth it at once; cost
// is how many links an entry takes.
func simulate(n int, weigh func(int) int) (most int, cost float64) {
	var units []int
	links, entries := 0, 0
	for i := range n {
		units = append([]int{weigh(i)}, units...)
		entries += units[0]
		most = max(most, len(units))
		if len(units) > mergeAbove {
			w, _ := worth(units, []window{{to: len(units)}}, mergeLeast)
			links += w.weight
			units = slices.Replace(units, w.from, w.to, w.weight)
		}
	}
	return most, float64(links) / float64(entries)
}

// TestWorth: whatever layers weigh, there are few units, and an entry is linked
// into few runs; a heavy layer is not taken along time and again.
func TestWorth(t *testing.T) {
	for name, weigh := range map[string]func(int) int{
		"even":    func(int) int { return 1 },
		"one":     func(i int) int { return 1 + (i/3000%2)*(3001/(i%3000+1))*1000 },
		"mixed":   func(i int) int { return []int{1, 1, 1, 5, 20, 200}[i*7919%6] },
		"million": func(i int) int { return 1 + i%1000/999*1_000_000 },
	} {
		most, cost := simulate(10_000, weigh)
		t.Logf("%s: %d units at most, %.1f links an entry", name, most, cost)
		if most > mergeAbove+1 || cost > 9 {
			t.Errorf("%s: %d units, %.1f links an entry", name, most, cost)
		}
	}
}

// TestWorthHeavy: sixty layers of one weight, that come as fast as two of them can be
// merged, hardly ever have a command wait, and take fewer links than there are
// layers to be had by them.
func TestWorthHeavy(t *testing.T) {
	var units []int
	var busy window
	left, links, waits, most := 0, 0, 0, 0
	finish := func() {
		units = slices.Replace(units, busy.from, busy.to, busy.weight)
		left = 0
	}
	begin := func() bool {
		least := mergeLeast
		if len(units) > mergeSoon {
			least = 2
		}
		if len(units) > mergeAbove {
			busy, _ = worth(units, []window{{to: len(units)}}, least)
			left, links = busy.weight, links+busy.weight
		}
		return left > 0
	}
	for range 60 {
		for room := 2; room > 0 && (left > 0 || begin()); {
			step := min(room, left)
			if room, left = room-step, left-step; left == 0 {
				finish()
			}
		}
		for len(units) > mergeMost-1 {
			waits++
			finish()
		}
		units = append([]int{1}, units...)
		busy.from, busy.to = busy.from+1, busy.to+1
		most = max(most, len(units))
	}
	t.Logf("%d units at most, %d links for 60 layers, %d waits", most, links, waits)
	if most > mergeMost || links > 90 || waits > 5 {
		t.Errorf("%d units, %d links, %d waits", most, links, waits)
	}
}

// TestClaims: nobody takes what another merge takes, nor units on both sides of a
// cut; who needs room takes what weighs least, or waits for what is sooner done.
func TestClaims(t *testing.T) {
	units := []unit{{dir: "e"}, {dir: "d"}, {dir: "c"}, {dir: "b"}, {dir: "a"}}
	var m merging
	take := func(cut int, want []window) *claim {
		return m.claim(units, cut, func(free []window, _ []*claim) (window, bool) {
			if !slices.Equal(free, want) {
				t.Errorf("free: %v, not %v", free, want)
			}
			return window{from: 1, to: 3}, true
		})
	}
	c := take(5, []window{{to: 5}})
	m.claim(units, 4, func(free []window, others []*claim) (window, bool) {
		if want := []window{{to: 1}, {from: 2, to: 2}, {from: 3, to: 4}, {from: 4, to: 5}}; !slices.Equal(free, want) {
			t.Errorf("free: %v, not %v", free, want)
		}
		if len(others) != 1 || others[0] != c {
			t.Errorf("others: %v", others)
		}
		return window{}, false
	})
	m.end(c)
	m.end(take(2, []window{{to: 2}, {from: 2, to: 5}}))
	weights := []int{9, 5, 1, 3, 2}
	for n, want := range map[int]window{2: {2, 4, 4}, 3: {2, 5, 6}, 5: {0, 5, 20}, 7: {0, 5, 20}} {
		if w, ok := lightest(weights, []window{{to: 5}}, n); !ok || w != want {
			t.Errorf("the lightest %d: %v %v, not %v", n, w, ok, want)
		}
	}
	if w, ok := lightest(weights, []window{{to: 1}, {from: 3, to: 4}}, 2); ok {
		t.Errorf("neighbours: %v", w)
	}
}

// runsOnDisk lists merged/.
func runsOnDisk(t *testing.T, d *Driver) (names []string) {
	t.Helper()
	found, err := os.ReadDir(filepath.Join(d.layers, "merged"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		names = append(names, f.Name())
	}
	return names
}

// TestFoldedRun: a run whose oldest layer has become part of a floor is not
// taken for one that stands on it.
func TestFoldedRun(t *testing.T) {
	testns.Need(t)
	ctx := context.Background()
	r := newSwapRig(t, Options{})
	for i := range 6 {
		r.write(i)
		r.push()
	}
	old := r.v.Layers
	if err := r.d.mergeUnits(ctx, old, r.d.units(old), window{to: 4}); err != nil {
		t.Fatal(err)
	}
	if n := len(r.d.units(old)); n != 4 {
		t.Fatalf("%d units, not 4", n)
	}
	floor, err := r.d.Fold(ctx, old[:4])
	if err != nil {
		t.Fatal(err)
	}
	folded := append([]snapshot.LayerID{floor}, old[4:]...)
	if len(folded) != 4 {
		t.Fatal("the run would not fit anyway")
	}
	for range 2 { // the driver that made the run, and one that finds it
		if n := len(r.d.units(folded)); n != 4 {
			t.Errorf("%d layers above a floor are %d units", len(folded), n)
		}
		r.d.runs = runs{}
	}
}

// TestSweepRuns: the runs of discarded layers go, and half-made ones of the
// dead; the others stay.
func TestSweepRuns(t *testing.T) {
	testns.Need(t)
	ctx := context.Background()
	r := newSwapRig(t, Options{})
	for i := range 7 {
		r.write(i)
		r.push()
	}
	layers := r.v.Layers
	for _, top := range []int{4, 8} {
		if err := r.d.mergeUnits(ctx, layers[:top], r.d.units(layers[:top]), window{to: 4}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"new.1", "new.2"} {
		sh(t, r.d.layers, "mkdir -p merged/"+name+"/s/x")
	}
	lock, err := lockAside(filepath.Join(r.d.layers, "merged", "new.2"))
	if err != nil {
		t.Fatal(err)
	}
	old := r.v.Open
	r.v = snapshot.View{Layers: slices.Clone(layers[:5]), Open: snapshot.NewLayerID()}
	r.show()
	for _, id := range append(slices.Clone(layers[5:]), old) {
		if err := r.d.Discard(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.d.Discard(ctx, layers[0]); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Errorf("discard a layer that a run in view stands for: %v", err)
	}
	if err := r.d.EmptyTrash(ctx); err != nil {
		t.Fatal(err)
	}
	left := strings.Join(runsOnDisk(t, r.d), " ")
	if want := string(layers[3]) + ".4 new.2"; left != want {
		t.Errorf("left: %s\nnot:  %s", left, want)
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	if err := r.d.EmptyTrash(ctx); err != nil {
		t.Fatal(err)
	}
	if left := runsOnDisk(t, r.d); len(left) != 1 {
		t.Errorf("left: %s", left)
	}
}

// TestDerived: what the runs take was noted as it is.
func TestDerived(t *testing.T) {
	testns.Need(t)
	ctx := context.Background()
	r := newSwapRig(t, Options{})
	for range 8 {
		sh(t, r.tree, "mkdir -p a/b c; echo $RANDOM > a/b/f; chmod 600 kept; rm -f n who; ln -f a/b/f c/g")
		r.push()
	}
	for _, top := range []int{5, 9} {
		if err := r.d.mergeUnits(ctx, r.v.Layers[:top], r.d.units(r.v.Layers[:top]), window{to: 4}); err != nil {
			t.Fatal(err)
		}
	}
	var want snapshot.Usage
	seen := map[uint64]bool{}
	err := filepath.WalkDir(filepath.Join(r.d.layers, "merged"), func(path string, e fs.DirEntry, err error) error {
		if err != nil || filepath.Base(filepath.Dir(path)) == "layers" || filepath.Base(filepath.Dir(path)) == "merged" {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st, _ := statT(fi)
		shared := !e.IsDir() && st.Nlink > 1 && fi.Mode()&fs.ModeCharDevice == 0
		if shared || filepath.Base(path) == "s" || seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		want.Bytes += st.Blocks * 512
		want.Inodes++
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.d.Derived(ctx); err != nil || got != want {
		t.Errorf("%+v %v, but on disk are %+v", got, err, want)
	}
}

// TestDepth: whatever comes, and though nothing is merged in the background, no
// mount has more than sixteen layers; who waits for that is told. Views that a
// rollback leads to are not waited for, unless their runs are lost.
func TestDepth(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	told := make(chan string, 1000)
	r.d.OnWait(func(s string) { told <- s })
	r.d.patience = 0
	var want []treecmp.Picture // by the number of layers
	check := func(what string) {
		t.Helper()
		if n := testns.MountedLayers(t, r.tree); n > 16 {
			t.Fatalf("%s: %d layers are mounted", what, n)
		}
		got, err := treecmp.Take(r.tree)
		if err != nil {
			t.Fatal(err)
		}
		if d := treecmp.Diff(want[len(r.v.Layers)], got, treecmp.Options{AnyNlink: true}); len(d) > 0 {
			t.Errorf("%s: not what the stack showed:\n%s", what, d)
		}
	}
	want = make([]treecmp.Picture, len(r.v.Layers)+1)
	for i := range 40 {
		cmd := fmt.Sprintf("mkdir -p d%d; touch d%[1]d/{%d..%d}; rm -f d%d/%d; chmod %o kept; mv d%[6]d/%d m%d 2>/dev/null || :", i%5, i, i+i%9*20, (i+2)%5, i-1, 0o600+i%2*4, (i+1)%5, i-2, i%3)
		sh(t, r.tree, cmd)
		p, err := treecmp.Take(r.tree)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, p)
		r.push()
		check(fmt.Sprint("layer ", i))
	}
	if len(told) == 0 {
		t.Error("nobody was told of a wait")
	}
	whole, waits := r.v.Layers, len(told)
	for n := len(whole) - 1; n > 0; n -= 7 {
		r.v = snapshot.View{Layers: slices.Clone(whole[:n]), Open: snapshot.NewLayerID()}
		r.show()
		check(fmt.Sprintf("back to %d layers", n))
	}
	if len(told) != waits {
		t.Errorf("a rollback waited: %s", <-told)
	}
	for _, name := range runsOnDisk(t, r.d) {
		if err := r.d.toTrash(filepath.Join(r.d.layers, "merged", name)); err != nil {
			t.Fatal(err)
		}
	}
	r.d.runs = runs{}
	r.v = snapshot.View{Layers: slices.Clone(whole), Open: snapshot.NewLayerID()}
	r.show()
	check("without runs")
	if len(told) == waits {
		t.Error("nobody was told that lost runs are made again")
	}
}

// TestDepthAllTheSame: where nothing can be merged the tree is shown all the same,
// and it is told why it is deep.
func TestDepthAllTheSame(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{MergeAbove: 2})
	var told string
	r.d.OnWait(func(s string) { told = s })
	sh(t, r.d.layers, "rm -rf merged; touch merged")
	for i := range 6 {
		r.write(i)
		r.push()
	}
	if n := testns.MountedLayers(t, r.tree); n != len(r.v.Layers)+2 || !strings.Contains(told, "deeper than it should be") {
		t.Errorf("%d are stacked of %d layers: %q", n, len(r.v.Layers), told)
	}
	sh(t, r.d.layers, "rm merged")
	r.write(6)
	r.push()
	if n := testns.MountedLayers(t, r.tree); n > 5 {
		t.Errorf("%d are stacked of %d layers, though there was room", n, len(r.v.Layers))
	}
}

// TestChownCopiesNothing: a change of owner and mode takes no space for bytes,
// where the file lies in base and where it lies in a layer, merged or not.
func TestChownCopiesNothing(t *testing.T) {
	testns.Need(t)
	ctx := context.Background()
	r := newSwapRig(t, Options{})
	sh(t, r.tree, "head -c 32M /dev/urandom > in-layer")
	r.push()
	for i := range 6 {
		r.write(i)
		r.push()
	}
	old := r.v.Layers
	if err := r.d.mergeUnits(ctx, old, r.d.units(old), window{to: len(old)}); err != nil {
		t.Fatal(err)
	}
	r.push() // stands on the run
	before, err := os.ReadFile(filepath.Join(r.tree, "in-layer"))
	if err != nil {
		t.Fatal(err)
	}
	sh(t, r.tree, "chown -R 1:1 .; chmod -R go-r .")
	u, err := r.d.Usage(ctx, r.v.Open)
	if err != nil || u.Bytes > 1<<20 {
		t.Errorf("%+v %v for a change of owner", u, err)
	}
	r.push()
	after, err := os.ReadFile(filepath.Join(r.tree, "in-layer"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the bytes are others now: %v", err)
	}
	fi, err := os.Lstat(filepath.Join(r.tree, "in-layer"))
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := statT(fi); st.Uid != 1 || fi.Mode().Perm() != 0o600 {
		t.Errorf("owner %d, mode %o", st.Uid, fi.Mode().Perm())
	}
}
