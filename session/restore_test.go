package session

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/overlay"
	"deployx/snapshot"
)

// restoreLayers is how many layers are stacked in the tests of the time that a
// restore takes, and restoreMost what it may take (issue 6).
const (
	restoreLayers = 16
	restoreMost   = 50 * time.Millisecond
)

// restoreRig has a history of that many layers, none merged with others.
func restoreRig(t testing.TB) *rig {
	r := newRig(t)
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	r.opts.OpenDriver = func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
		return overlay.New(overlay.Options{Tree: t.Path, State: t.Store, MergeAbove: 10 * restoreLayers})
	}
	r.reopen()
	for i := range restoreLayers {
		r.run(fmt.Sprintf("cd $DEPLOYX_TREE; mkdir -p d%d; for i in 1 2 3 4 5 6 7 8 9; do echo %d > d%d/$i; done", i, i, i/2))
	}
	return r
}

// restored is the time from what a host has after it has booted to a tree that
// is shown: what deployx restore does for each tree.
func (r *rig) restored() time.Duration {
	r.Helper()
	if err := r.Session.Close(); err != nil {
		r.Fatal(err)
	}
	for unix.Unmount(r.tree, unix.MNT_DETACH) == nil { //nolint:revive // until nothing is mounted
	}
	start := time.Now()
	r.reopen()
	x, err := r.Restore(context.Background())
	if err == nil {
		err = r.Session.Close()
	}
	took := time.Since(start)
	if err != nil || x.Layers != restoreLayers+1 {
		r.Fatal(x, err)
	}
	r.reopen()
	return took
}

// TestRestoreQuick: the quickest of some, beside the quickest start of a process,
// which takes up to a millisecond where nothing else runs.
func TestRestoreQuick(t *testing.T) {
	r := restoreRig(t)
	want := picture(t, r.tree)
	best, exec := time.Hour, time.Hour
	for range 10 {
		best = min(best, r.restored())
		start := time.Now()
		sh(t, r.tree, ":")
		exec = min(exec, time.Since(start))
	}
	t.Logf("%s, beside %s for a process", best, exec)
	if most := restoreMost * max(time.Millisecond, exec) / time.Millisecond; best > most {
		t.Errorf("a restore at %d layers takes %s, more than %s", restoreLayers, best, most)
	}
	sameTree(t, "restored", want, r.tree)
}

func BenchmarkRestore(b *testing.B) {
	r := restoreRig(b)
	var took time.Duration
	for b.Loop() {
		took += r.restored()
	}
	b.ReportMetric(took.Seconds()*1000/float64(b.N), "ms/tree")
}
