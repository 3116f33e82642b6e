package overlay

import (
	"fmt"
	"os"
	"testing"

	"deployx/internal/testns"
	"deployx/snapshot"
	"deployx/snapshot/snapshottest"
)

// limits are what overlayfs cannot do exactly: see docs/design.md. In the plain
// layout there is no index.
var (
	limits      = snapshottest.Options{CountsLayers: true, NoWhiteoutDevices: true, LosesFlags: true, OpenTouches: true}
	plainLimits = snapshottest.Options{CountsLayers: true, NoWhiteoutDevices: true, LosesFlags: true, OpenTouches: true, SplitsHardLinks: true}
)

// here are the limits on this kernel.
func here(t *testing.T, o snapshottest.Options) snapshottest.Options {
	t.Helper()
	o.Gap = !testns.Kernel(t, 6, 5)
	o.LosesFlags = testns.Kernel(t, 5, 15)
	return o
}

// opener opens drivers with given options, and takes the plain layout's bind
// mount away at the end.
func opener(o Options) snapshottest.Open {
	return func(t *testing.T, tree, state string) snapshot.Driver {
		o.Tree, o.State = tree, state
		d, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.unbindBase(); err != nil {
				t.Error(err)
			}
		})
		return d
	}
}

func TestConformance(t *testing.T) {
	t.Run("subtree", func(t *testing.T) { here(t, limits).Run(t, opener(Options{})) })
	t.Run("plain", func(t *testing.T) { here(t, plainLimits).Run(t, opener(Options{Plain: true})) })
}

// TestConformanceMerged merges as soon as it can, so that every view of the
// suite stands on merged runs: they must show what the layers show, entry by
// entry, extended attributes included. Where one unit is all that is allowed,
// every run lies on base; where there are some, runs lie on runs and on layers.
func TestConformanceMerged(t *testing.T) {
	some := []int{3}
	if os.Getenv(snapshottest.EnvSoak) != "" {
		some = []int{2, 3, 5}
	}
	for _, above := range some {
		t.Run(fmt.Sprintf("units=%d", above), func(t *testing.T) { here(t, limits).Random(t, opener(Options{MergeAbove: above})) })
	}
	t.Run("subtree", func(t *testing.T) { here(t, limits).Run(t, opener(Options{MergeAbove: 1})) })
	t.Run("plain", func(t *testing.T) { here(t, plainLimits).Random(t, opener(Options{Plain: true, MergeAbove: 1})) })
	t.Run("crash", func(t *testing.T) { limits.Crash(t, opener(Options{MergeAbove: 1})) })
}

// TestConformanceOld forces the ways of kernels before 6.5, where a swap shows
// base for a moment.
func TestConformanceOld(t *testing.T) {
	testns.NeedKernel(t, 6, 5, "another way than TestConformance's")
	o := limits
	o.Gap = true
	o.Run(t, opener(Options{Old: true}))
}

// TestConformanceApart has the layers on another filesystem than base, where a tree
// that is itself a mount has them: nothing can be linked to base.
func TestConformanceApart(t *testing.T) {
	for name, o := range map[string]Options{"subtree": {}, "plain": {Plain: true}} {
		t.Run(name, func(t *testing.T) {
			l := here(t, map[bool]snapshottest.Options{false: limits, true: plainLimits}[o.Plain])
			l.Apart = true
			l.Commit(t, opener(o))
		})
	}
}

// TestCrash kills the process at every named point of the driver.
func TestCrash(t *testing.T) { limits.Crash(t, opener(Options{})) }

// TestCrashPlain is the same in the plain layout.
func TestCrashPlain(t *testing.T) { plainLimits.Crash(t, opener(Options{Plain: true})) }

// TestCrashOld is the same in the ways of old kernels. make vm-test runs
// TestCrash on those.
func TestCrashOld(t *testing.T) {
	if os.Getenv("DEPLOYX_SOAK") == "" {
		t.Skip("runs with DEPLOYX_SOAK=1 (make soak), and on old kernels as TestCrash (make vm-test)")
	}
	o := limits
	o.Gap = true
	o.Crash(t, opener(Options{Old: true}))
}
