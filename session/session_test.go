package session

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

func picture(t testing.TB, dir string) treecmp.Picture {
	t.Helper()
	p, err := treecmp.Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func same(t testing.TB, what string, want, got treecmp.Picture) {
	t.Helper()
	if d := treecmp.Diff(want, got, treecmp.Options{}); len(d) > 0 {
		t.Errorf("%s:\n%s", what, d)
	}
}

func mounted(t testing.TB, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+dir+" ")
}

// TestUndoAll: files, directory and shell state go back together, one command
// at a time and all at once, and come back by redo; nothing is mounted at the
// end.
func TestUndoAll(t *testing.T) { onBoth(t, undoAll) }

func undoAll(t *testing.T, r *rig) {
	r.run("true")
	p0 := picture(t, r.tree)
	a, _ := r.run("mkdir sub; cd sub; A=1; f() { echo f$A; }; set -o pipefail; umask 027; echo one > file")
	p1 := picture(t, r.tree)
	if _, out := r.run("f; pwd; umask"); out != "f1\n"+r.tree+"/sub\n0027\n" {
		t.Errorf("state was lost: %q", out)
	}
	b, _ := r.run("A=2; cd ..; rm -r sub")
	if b.Snapshot.Changes.Deleted != 2 {
		t.Errorf("changes: %+v", b.Snapshot.Changes)
	}
	u := r.rollback(b.Snapshot.ID)
	same(t, "after one rollback", p1, picture(t, r.tree))
	if u.Dir != r.tree+"/sub" || !u.Verified || len(u.Dropped) != 1 {
		t.Errorf("%+v", u)
	}
	if _, out := r.run("f; pwd; shopt -o pipefail"); !strings.HasPrefix(out, "f1\n"+r.tree+"/sub\n") || !strings.Contains(out, "on") {
		t.Errorf("the shell is not where it was: %q", out)
	}
	p2 := picture(t, r.tree)
	u = r.rollback(a.Snapshot.ID)
	same(t, "after two", p0, picture(t, r.tree))
	if !u.Plain || mounted(t, r.tree) {
		t.Error("a tree without layers is still mounted")
	}
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, "after redo", p2, picture(t, r.tree))
	if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, "after all", p0, picture(t, r.tree))
}

// TestDrift: what others write between commands is theirs: in its own layer,
// never thrown away unasked, and brought back by redo if it was.
func TestDrift(t *testing.T) { onBoth(t, drift) }

func drift(t *testing.T, r *rig) {
	a, _ := r.run("echo a > a")
	other := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(r.tree, name), []byte("theirs"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	other("upload")
	b, _ := r.run("echo b > b")
	if b.Snapshot.Changes.Added != 1 {
		t.Errorf("the command was charged with the drift: %+v", b.Snapshot.Changes)
	}
	other("late")
	want := picture(t, r.tree)
	for _, target := range []Target{{ID: b.Snapshot.ID}, {ID: a.Snapshot.ID}, {All: true}} {
		_, err := r.Rollback(context.Background(), target, RollbackOptions{Drift: DriftRefuse})
		var e *snapshot.Error
		if !errors.As(err, &e) || e.Code != snapshot.CodeDriftConflict || e.Paths[0] != "late" {
			t.Errorf("%+v: %v", target, err)
		}
		same(t, "after a refusal", want, picture(t, r.tree))
	}
	u, err := r.Rollback(context.Background(), Target{ID: a.Snapshot.ID}, RollbackOptions{Drift: DriftDrop, DryRun: true})
	if err != nil || len(u.Dropped) != 4 {
		t.Fatalf("%d %v", len(u.Dropped), err)
	}
	same(t, "after a dry run", want, picture(t, r.tree))
	if _, err := r.Rollback(context.Background(), Target{ID: a.Snapshot.ID}, RollbackOptions{Drift: DriftDrop}); err != nil {
		t.Fatal(err)
	}
	if len(picture(t, r.tree)) != 1 {
		t.Error("something is left")
	}
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, "after redo", want, picture(t, r.tree))
	other("later")
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); snapshot.CodeOf(err) != snapshot.CodeBadRequest {
		t.Error(err)
	}
}

// TestTwoSessions: two processes on one tree see each other's commands, files
// and shell state alike.
func TestTwoSessions(t *testing.T) { onBoth(t, twoSessions) }

func twoSessions(t *testing.T, r *rig) {
	r.run("X=1; mkdir d; cd d")
	first := r.Session
	r.reopen()
	if _, out := r.run("echo $X; pwd; X=2"); out != "1\n"+r.tree+"/d\n" {
		t.Errorf("the second does not go on from the first: %q", out)
	}
	second := r.Session
	r.Session = first
	if _, out := r.run("echo $X"); out != "2\n" {
		t.Errorf("the first does not go on from the second: %q", out)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
}

// holder starts a process that stands in the tree.
func holder(t *testing.T, tree string) *exec.Cmd {
	t.Helper()
	c := exec.Command("sleep", "600")
	c.Dir = tree
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() }) //nolint:errcheck // it may have ended
	return c
}

// TestPinned: under a holder commands share one rollback point, which they say;
// a rollback names the holder; when it is gone each command has its own again.
func TestPinned(t *testing.T) {
	r := newRig(t)
	r.opts.OnPinned = Share
	r.reopen()
	a, _ := r.run("echo a > a")
	h := holder(t, r.tree)
	b, _ := r.run("echo b > b")
	if len(b.Snapshot.PinnedBy) != 1 || b.Snapshot.PinnedBy[0].PID != h.Process.Pid || b.Snapshot.SharedWith != "" {
		t.Errorf("the first command under a holder: %+v", b.Snapshot)
	}
	c, _ := r.run("echo c > c")
	if c.Snapshot.SharedWith != b.Snapshot.ID {
		t.Errorf("the second shares with %q, want %s", c.Snapshot.SharedWith, b.Snapshot.ID)
	}
	_, err := r.Rollback(context.Background(), Target{ID: c.Snapshot.ID}, RollbackOptions{})
	var e *snapshot.Error
	if !errors.As(err, &e) || e.Code != snapshot.CodeTreeBusy || e.Holders[0].PID != h.Process.Pid {
		t.Errorf("a rollback under a holder: %v", err)
	}
	h.Process.Kill() //nolint:errcheck // Wait tells
	h.Wait()         //nolint:errcheck // it was killed
	d, _ := r.run("echo d > d")
	if len(d.Snapshot.PinnedBy) != 0 || d.Snapshot.SharedWith != "" {
		t.Errorf("after the holder's end: %+v", d.Snapshot)
	}
	u := r.rollback(c.Snapshot.ID)
	if len(u.Dropped) != 3 {
		t.Errorf("one rollback point, dropped %d", len(u.Dropped))
	}
	if _, err := os.Stat(filepath.Join(r.tree, "b")); err == nil {
		t.Error("b shares its rollback point with c, and is still there")
	}
	r.rollback(a.Snapshot.ID)
}

// TestPinnedPolicies: refuse runs nothing; stop ends the holder, then runs.
func TestPinnedPolicies(t *testing.T) {
	r := newRig(t)
	r.run("echo a > a")
	h := holder(t, r.tree)
	r.o.OnPinned = Refuse
	_, err := r.Run(context.Background(), Command{Text: "echo b > b"})
	if snapshot.CodeOf(err) != snapshot.CodeTreeBusy || !strings.Contains(err.Error(), "sleep") {
		t.Errorf("refuse: %v", err)
	}
	if _, err := os.Stat(filepath.Join(r.tree, "b")); err == nil {
		t.Error("the command ran")
	}
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		h.Wait() //nolint:errcheck // reaps it, or it would stay a zombie
	}()
	r.o.OnPinned = Stop
	b, _ := r.run("echo b > b")
	if len(b.Snapshot.PinnedBy) != 0 {
		t.Errorf("stop: %+v", b.Snapshot)
	}
	<-reaped
	r.rollback(b.Snapshot.ID)
}

// TestNothingChanged: a command that changes nothing has an id, and no layer.
func TestNothingChanged(t *testing.T) { onBoth(t, nothingChanged) }

func nothingChanged(t *testing.T, r *rig) {
	a, _ := r.run("echo a > a")
	open := r.rec.Head().Open
	b, _ := r.run("X=5")
	if b.Snapshot.Layer != "" || r.rec.Head().Open != open {
		t.Errorf("layer %q, the open layer was %s and is %s", b.Snapshot.Layer, open, r.rec.Head().Open)
	}
	r.rollback(b.Snapshot.ID)
	if _, out := r.run("echo $X"); out != "\n" {
		t.Errorf("its variable is still there: %q", out)
	}
	r.rollback(a.Snapshot.ID)
}
