package session

import (
	"context"
	"errors"
	"slices"
	"testing"

	"deployx/snapshot"
)

func (r *rig) forget(id snapshot.ID, older bool, want int) {
	r.Helper()
	if n, err := r.Forget(context.Background(), id, older); n != want || err != nil {
		r.Errorf("Forget(%s, %v): %d, %v; want %d", id, older, n, err, want)
	}
}

// mayNotForget wants a refusal that names the others, and nothing changed.
func (r *rig) mayNotForget(t *testing.T, id snapshot.ID, others ...snapshot.ID) {
	t.Helper()
	before, seq := picture(t, r.tree), r.rec.Head().Seq
	n, err := r.Forget(context.Background(), id, false)
	var e *snapshot.Error
	if n != 0 || !errors.As(err, &e) || e.Code != snapshot.CodeUnsupported {
		t.Fatalf("forgot %d, %v", n, err)
	}
	for _, o := range others {
		if !slices.Contains(e.Candidates, string(o)) {
			t.Errorf("%v does not name %s: %v", err, o, e.Candidates)
		}
	}
	sameTree(t, "after a refusal", before, r.tree)
	if now := r.rec.Head().Seq; now != seq {
		t.Errorf("the head moved from %d to %d", seq, now)
	}
}

// TestForgetApplied: the oldest goes alone, others only when that is asked; what
// the commands did stays, and newer ones can still be undone.
func TestForgetApplied(t *testing.T) { onBoth(t, forgetApplied) }

func forgetApplied(t *testing.T, r *rig) {
	a, _ := r.run("mkdir d; echo a > d/f")
	pa := picture(t, r.tree)
	b, _ := r.run("mv d e; echo b >> e/f")
	c, _ := r.run("rm -r e")
	pc := picture(t, r.tree)
	d, _ := r.run("echo d > d")
	pd := picture(t, r.tree)
	r.mayNotForget(t, b.Snapshot.ID, a.Snapshot.ID)
	r.forget(a.Snapshot.ID, false, 1)
	sameTree(t, "without the oldest", pd, r.tree)
	r.forget(a.Snapshot.ID, false, 0)
	if _, err := r.Rollback(context.Background(), Target{ID: a.Snapshot.ID}, RollbackOptions{}); snapshot.CodeOf(err) != snapshot.CodeExpired {
		t.Errorf("rolled back to what was forgotten: %v", err)
	}
	r.rollback(b.Snapshot.ID)
	sameTree(t, "rolled back to the oldest", pa, r.tree)
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	r.forget(c.Snapshot.ID, true, 2)
	sameTree(t, "without c and older", pd, r.tree)
	r.reopen()
	r.rollback(d.Snapshot.ID)
	sameTree(t, "before d", pc, r.tree)
	if _, err := r.Forget(context.Background(), snapshot.NewID(), true); snapshot.CodeOf(err) != snapshot.CodeUnknownSnapshot {
		t.Errorf("one that is not there: %v", err)
	}
}

// TestForgetUndone: one that was rolled back goes for good; what was rolled back
// with it can still be brought back, with the shell's directory.
func TestForgetUndone(t *testing.T) { onBoth(t, forgetUndone) }

func forgetUndone(t *testing.T, r *rig) {
	a, _ := r.run("mkdir sub; echo a > a")
	pa := picture(t, r.tree)
	b, _ := r.run("cd sub; echo b > b")
	pb := picture(t, r.tree)
	c, _ := r.run("cd ..; echo c > c")
	r.rollback(b.Snapshot.ID) // c with it
	r.mayNotForget(t, b.Snapshot.ID, c.Snapshot.ID)
	r.forget(c.Snapshot.ID, false, 1)
	sameTree(t, "the tree is as it was", pa, r.tree)
	r.reopen()
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "b is back, c is not", pb, r.tree)
	if _, out := r.run("pwd"); out != r.tree+"/sub\n" {
		t.Errorf("the shell is in %s", out)
	}
	r.rollback(b.Snapshot.ID)
	if _, err := r.Forget(context.Background(), b.Snapshot.ID, false); snapshot.CodeOf(err) != snapshot.CodeUnsupported {
		t.Errorf("pwd stands on it: %v", err)
	}
	r.rollback(a.Snapshot.ID)
	r.reopen()
	if n := len(r.rec.Head().Redo); n != 2 {
		t.Fatalf("%d rollbacks can be taken back", n)
	}
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "a is back", pa, r.tree)
}

// A layer that still takes writes cannot go.
func TestForgetShared(t *testing.T) { onBoth(t, forgetShared) }

func forgetShared(t *testing.T, r *rig) {
	res, err := r.Run(context.Background(), Command{Text: "echo 1 > f", NoSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	r.mayNotForget(t, res.Snapshot.ID)
}
