package fallback_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// TestPowerCut takes the power away at every point of a capture and of a
// rollback: what was not synced is lost, and everything fails from then on. On
// the filesystem mounted again the tree is at one of the two ends, and both can
// be shown.
func TestPowerCut(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		for _, at := range []string{"dirty", "show"} {
			t.Run(fs+" "+at, func(t *testing.T) {
				n := 1
				for powerCut(t, fs, at, n) {
					if n++; testing.Short() {
						n += 3
					}
				}
				if n < 8 {
					t.Errorf("only %d points", n)
				}
			})
		}
	}
}

func powerCut(t *testing.T, fs, at string, n int) (cut bool) {
	img := testns.NewImage(t, testns.ImageOptions{Type: fs})
	o := fallback.Options{Tree: filepath.Join(img.Dir, "tree"), State: filepath.Join(img.Dir, "state")}
	must(t, os.Mkdir(o.Tree, 0o755))
	script(t, o.Tree, takeBackBase)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v := show(t, d)
	base := picture(t, o.Tree)
	script(t, o.Tree, takeBackChange)
	changed := picture(t, o.Tree)
	must(t, d.Sync(t.Context()))
	var points atomic.Int64 // workers pass points too
	hook := func(string) {
		if points.Add(1) == int64(n) {
			testns.CutPower(img.Dir)
		}
	}
	if at == "dirty" {
		restore := crash.SetHook(hook)
		_, err = d.Dirty(t.Context(), v)
		restore()
	} else {
		v = push(t, d, v)
		must(t, d.Sync(t.Context()))
		restore := crash.SetHook(hook)
		_, err = d.Show(t.Context(), snapshot.View{Open: "rolled back"})
		restore()
	}
	cut = points.Load() >= int64(n)
	if !cut && err != nil {
		t.Fatal(err)
	}
	d.Close() //nolint:errcheck // after a cut everything fails
	img.Unmount()
	img.Mount()
	afterCut(t, o, at, n, v, base, changed)
	img.Unmount()
	return cut
}

// afterCut opens the driver twice, and goes to both ends.
func afterCut(t *testing.T, o fallback.Options, at string, n int, v snapshot.View, base, changed treecmp.Picture) {
	t.Helper()
	for range 2 {
		d, err := fallback.Open(t.Context(), o)
		must(t, err)
		now := picture(t, o.Tree)
		if at == "dirty" || len(treecmp.Diff(base, now, treecmp.Options{})) > 0 {
			diff(t, changed, now)
		}
		must(t, d.Close())
	}
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	layers := v.Layers
	if at == "dirty" {
		layers = []snapshot.LayerID{v.Open}
		if _, err := d.Show(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if !dirty(t, d, v) {
			t.Fatalf("cut %d: the change is not seen", n)
		}
	}
	show(t, d)
	diff(t, base, picture(t, o.Tree))
	show(t, d, layers...)
	diff(t, changed, picture(t, o.Tree))
	must(t, d.Close())
}

// TestPowerCutAfterShow takes the power away when a view has been shown and a
// neighbour's fsync has made the tree's new file last: it belongs to that view's
// open layer, not to the layer below it or to base.
func TestPowerCutAfterShow(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		for _, layers := range []int{0, 1} {
			t.Run(fmt.Sprint(fs, " ", layers), func(t *testing.T) {
				img := testns.NewImage(t, testns.ImageOptions{Type: fs})
				o := fallback.Options{Tree: filepath.Join(img.Dir, "tree"), State: filepath.Join(img.Dir, "state")}
				must(t, os.Mkdir(o.Tree, 0o755))
				d, err := fallback.Open(t.Context(), o)
				must(t, err)
				v := show(t, d)
				if layers > 0 {
					must(t, os.WriteFile(filepath.Join(o.Tree, "old"), nil, 0o600))
					v = push(t, d, v)
				}
				must(t, os.Mkdir(filepath.Join(o.Tree, "new"), 0o700))
				must(t, durable.Write(filepath.Join(img.Dir, "neighbour"), nil))
				testns.CutPower(img.Dir)
				d.Close() //nolint:errcheck // after a cut everything fails
				img.Unmount()
				img.Mount()
				must(t, exists(filepath.Join(o.Tree, "new")))
				d, err = fallback.Open(t.Context(), o)
				must(t, err)
				if open, err := d.Shown(t.Context()); err != nil || open != v.Open {
					t.Errorf("%q is shown, want %q: %v", open, v.Open, err)
				}
				must(t, d.Close())
			})
		}
	}
}

func exists(name string) error {
	_, err := os.Lstat(name)
	return err
}
