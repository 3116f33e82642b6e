package fallback_test

import (
	"os"
	"path/filepath"
	"testing"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// TestPowerCutTwoDisks: with the state on another filesystem than the tree both are on
// disk once Sync has returned, or a rollback: each loses its power, and all is there.
func TestPowerCutTwoDisks(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		for _, undo := range []bool{false, true} {
			t.Run(fs+map[bool]string{false: " command", true: " rollback"}[undo], func(t *testing.T) { twoDisks(t, fs, undo) })
		}
	}
}

func twoDisks(t *testing.T, fs string, undo bool) {
	trees := testns.NewImage(t, testns.ImageOptions{Type: fs})
	states := testns.NewImage(t, testns.ImageOptions{Type: fs})
	o := fallback.Options{Tree: filepath.Join(trees.Dir, "tree"), State: filepath.Join(states.Dir, "state")}
	must(t, os.Mkdir(o.Tree, 0o755))
	script(t, o.Tree, takeBackBase)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v := show(t, d)
	must(t, d.Sync(t.Context()))
	base := picture(t, o.Tree)
	script(t, o.Tree, takeBackChange+`; head -c 1M /dev/urandom >large`)
	changed := picture(t, o.Tree)
	dirty(t, d, v)
	want, layers := changed, []snapshot.LayerID{v.Open}
	if undo {
		v = push(t, d, v)
		show(t, d)
		want = base
	} else {
		must(t, d.Sync(t.Context()))
	}
	for _, img := range []*testns.Image{trees, states} {
		testns.CutPower(img.Dir)
	}
	d.Close() //nolint:errcheck // after a cut everything fails
	for _, img := range []*testns.Image{trees, states} {
		img.Unmount()
		img.Mount()
	}
	for range 2 {
		d, err = fallback.Open(t.Context(), o)
		must(t, err)
		diff(t, want, picture(t, o.Tree))
		if !undo && !dirty(t, d, v) {
			t.Error("the layer is empty")
		}
		must(t, d.Close())
	}
	d, err = fallback.Open(t.Context(), o)
	must(t, err)
	show(t, d)
	diff(t, base, picture(t, o.Tree))
	show(t, d, layers...)
	diff(t, changed, picture(t, o.Tree))
	must(t, d.Close())
}
