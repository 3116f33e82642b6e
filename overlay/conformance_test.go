package overlay

import (
	"testing"

	"deployx/snapshot"
	"deployx/snapshot/snapshottest"
)

// limits are what overlayfs cannot do exactly: see docs/design.md.
var limits = snapshottest.Options{SplitsHardLinks: true, NoWhiteoutDevices: true, LosesFlags: true}

func TestConformance(t *testing.T) {
	for name, o := range map[string]Options{"subtree": {}, "plain": {Plain: true}, "old": {Old: true}} {
		t.Run(name, func(t *testing.T) {
			limits.Run(t, func(t *testing.T, tree, state string) snapshot.Driver {
				o.Tree, o.State = tree, state
				d, err := New(o)
				if err != nil {
					t.Fatal(err)
				}
				return d
			})
		})
	}
}
