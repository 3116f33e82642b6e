package overlay

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// TestWorth: whatever layers weigh, there are few units, and an entry is linked
// into few runs; a heavy layer is not taken along time and again.
func TestWorth(t *testing.T) {
	for name, weigh := range map[string]func(int) int{
		"even":  func(int) int { return 1 },
		"one":   func(i int) int { return 1 + (i/3000%2)*(3001/(i%3000+1))*1000 },
		"mixed": func(i int) int { return []int{1, 1, 1, 5, 20, 200}[i*7919%6] },
	} {
		var units []int
		links, entries, most := 0, 0, 0
		for i := range 10_000 {
			units = append([]int{weigh(i)}, units...)
			entries += units[0]
			most = max(most, len(units))
			if len(units) <= mergeAbove {
				continue
			}
			k, n := worth(units, mergeLeast), 0
			for _, u := range units[:k] {
				n += u
			}
			links += n
			units = append([]int{n}, units[k:]...)
		}
		t.Logf("%s: %d units at most, %.1f links an entry", name, most, float64(links)/float64(entries))
		if most > mergeAbove+1 || links > 9*entries {
			t.Errorf("%s: %d units, %d links for %d entries", name, most, links, entries)
		}
	}
}

// TestHurryLeavesTheRest: Show takes neither what the merge in the background
// takes nor what would keep a command waiting.
func TestHurryLeavesTheRest(t *testing.T) {
	if k := light([]int{1, 900, 900, 900, 1}); k != 3 {
		t.Errorf("light: %d units", k)
	}
	if k := light([]int{mergeLight + 1, 1}); k != 0 {
		t.Errorf("a heavy one on top: %d units", k)
	}
	layers := []snapshot.LayerID{"a", "b", "c", "d", "e"}
	units := []unit{{n: 1}, {n: 1}, {n: 2}, {n: 1}} // e, d, b-c, a
	var m merging
	for newest, want := range map[snapshot.LayerID]int{"": 4, "e": 0, "d": 1, "c": 2, "b": 4, "a": 3} {
		m.begin(newest)
		if k := m.above(layers, units); k != want {
			t.Errorf("a merge up to %q goes on: %d units are free, not %d", newest, k, want)
		}
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
	if err := r.d.mergeUnits(ctx, old, r.d.units(old)[:4]); err != nil {
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
		if err := r.d.mergeUnits(ctx, layers[:top], r.d.units(layers[:top])[:4]); err != nil {
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
		if err := r.d.mergeUnits(ctx, r.v.Layers[:top], r.d.units(r.v.Layers[:top])[:4]); err != nil {
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

// TestHurryGivesUp: a merge that takes too long does not hold a view up, and
// what it began is in nobody's way.
func TestHurryGivesUp(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{MergeAbove: 2})
	r.d.patience = 0
	for i := range 6 {
		r.write(i)
		r.push()
	}
	if n, _ := r.d.Depth(r.v); n != len(r.v.Layers)+1 {
		t.Errorf("%d are stacked of %d layers, though no merge had time", n, len(r.v.Layers))
	}
	r.d.patience = mergePatience
	r.write(6)
	r.push()
	if n, _ := r.d.Depth(r.v); n > 5 {
		t.Errorf("%d are stacked of %d layers, though there was time", n, len(r.v.Layers))
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
	if err := r.d.mergeUnits(ctx, old, r.d.units(old)); err != nil {
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
