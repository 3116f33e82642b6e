package overlay

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"deployx/internal/testns"
)

// TestShowFailsBooted: where a view cannot be shown after a boot, what others have
// written to its open layer is there when it can.
func TestShowFailsBooted(t *testing.T) {
	testns.Need(t)
	for _, plain := range []bool{false, true} {
		dir := t.TempDir()
		r := newSwapRigIn(t, dir, Options{Plain: plain})
		sh(t, r.tree, "echo drift > drift")
		if err := r.d.Close(); err != nil {
			t.Fatal(err)
		}
		r.unmount(dir)
		var err error
		if r.d, err = New(Options{Tree: r.tree, State: filepath.Join(dir, "state"), Plain: plain}); err != nil {
			t.Fatal(err)
		}
		below := r.d.dir(r.v.Layers[0], "")
		if err := os.Rename(below, below+".gone"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.d.Show(context.Background(), r.v); err == nil {
			t.Error("a view was shown without one of its layers")
		}
		if err := os.Rename(below+".gone", below); err != nil {
			t.Fatal(err)
		}
		r.show()
		sh(t, r.tree, "[ $(cat drift) = drift ]")
		if err := r.d.Close(); err != nil {
			t.Error(err)
		}
	}
}
