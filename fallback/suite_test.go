package fallback_test

import (
	"testing"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/snapshot"
	"deployx/snapshot/snapshottest"
)

func TestMain(m *testing.M) { testns.Main(m) }

func open(t *testing.T, tree, state string) snapshot.Driver {
	return openAs(t, fallback.Options{Tree: tree, State: state})
}

func openOld(t *testing.T, tree, state string) snapshot.Driver {
	return openAs(t, fallback.Options{Tree: tree, State: state}.Old())
}

func openAs(t *testing.T, o fallback.Options) snapshot.Driver {
	t.Helper()
	d, err := fallback.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestConformance(t *testing.T) { snapshottest.Run(t, open) }

func TestConformanceXFS(t *testing.T) { most(t, snapshottest.Options{FS: "xfs"}, open) }

func TestConformanceBtrfs(t *testing.T) { most(t, snapshottest.Options{FS: "btrfs"}, open) }

// TestConformanceOld goes all the ways that are not gone here otherwise.
func TestConformanceOld(t *testing.T) { most(t, snapshottest.Options{Gap: true}, openOld) }

// most runs the whole suite, or with -short what finds most in little time.
func most(t *testing.T, o snapshottest.Options, open snapshottest.Open) {
	if !testing.Short() {
		o.Run(t, open)
		return
	}
	t.Run("random", func(t *testing.T) { o.Random(t, open) })
	t.Run("contract", func(t *testing.T) { o.Contract(t, open) })
}

func TestCrash(t *testing.T) { snapshottest.Crash(t, open) }

// TestCrashLean restores as on a full disk.
func TestCrashLean(t *testing.T) {
	snapshottest.Crash(t, func(t *testing.T, tree, state string) snapshot.Driver {
		return openAs(t, fallback.Options{Tree: tree, State: state}.Lean())
	})
}

// TestCrashOld also writes the index after every step.
func TestCrashOld(t *testing.T) { snapshottest.Crash(t, openOld) }
