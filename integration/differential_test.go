package integration

import (
	"testing"

	"deployx/fallback"
	"deployx/overlay"
	"deployx/snapshot"
	"deployx/snapshot/snapshottest"
)

// TestDifferential drives both drivers with the same long random sequences and
// demands the same trees, the same changes and the same refusals. What
// overlayfs cannot do exactly (docs/design.md) is left out.
func TestDifferential(t *testing.T) {
	copying := func(t *testing.T, tree, state string) snapshot.Driver {
		d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: state})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	mounting := func(t *testing.T, tree, state string) snapshot.Driver {
		d, err := overlay.New(overlay.Options{Tree: tree, State: state})
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	snapshottest.Differential(t,
		snapshottest.Subject{Open: copying},
		snapshottest.Subject{Open: mounting, Options: snapshottest.Options{
			CountsLayers: true, NoWhiteoutDevices: true, LosesFlags: true, OpenTouches: true, LongRenames: true,
		}})
}
