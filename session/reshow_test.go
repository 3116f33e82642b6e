package session

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// TestReshowHeld: a rollback and a redo that were killed before the swap are done in
// place where somebody holds the tree by then.
func TestReshowHeld(t *testing.T) {
	for _, again := range []bool{false, true} {
		t.Run(fmt.Sprintf("redo=%v", again), func(t *testing.T) {
			onLayouts(t, func(t *testing.T, r *rig) {
				r.run("mkdir d; echo 1 > d/f; echo 1 > a; echo 0 > log; touch -d @1 log")
				want := picture(t, r.tree)
				two, _ := r.run("echo 2 > d/f; rm a; echo 2 > b")
				do := func() error {
					_, err := r.Rollback(context.Background(), Target{ID: two.Snapshot.ID}, RollbackOptions{})
					return err
				}
				if again {
					want = picture(t, r.tree)
					r.rollback(two.Snapshot.ID)
					do = func() error { return redo(r) }
				}
				r.cut("session.rolled", do)
				r.put("log", "meanwhile\n")
				h := hold(t, filepath.Join(r.tree, "d"))
				r.reopen()
				if _, err := r.Session.Restore(context.Background()); err != nil {
					t.Fatal(err)
				}
				r.shows("held", map[string]string{"log": "meanwhile\n"})
				f := map[bool]string{false: "1\n", true: "2\n"}[again]
				r.shows("held", map[string]string{"d/f": f})
				r.run("echo 3 > d/f")
				h.end()
				if _, err := r.Rollback(context.Background(), Target{Last: 1}, RollbackOptions{}); err != nil {
					t.Fatal(err)
				}
				r.shows("let go", map[string]string{"d/f": f, "log": "meanwhile\n"})
				r.put("log", "0\n")
				if err := r.tryOutside(r.tree, "touch -d @1 log"); err != nil {
					t.Fatal(err)
				}
				r.same("let go", want)
			})
		})
	}
}

// cut does something that is killed at a point.
func (r *rig) cut(point string, do func() error) {
	r.Helper()
	killed := false
	func() {
		defer func() { recover() }() //nolint:errcheck // stands for a kill
		defer crash.SetHook(func(at string) {
			if at == point {
				killed = true
				panic("killed")
			}
		})()
		if err := do(); err != nil {
			r.Error(err)
		}
	}()
	if !killed {
		r.Fatal("not passed: ", point)
	}
}

// TestReshowOwned: not where what the tree shows is an entry's, to which redo leads: it
// waits for the swap.
func TestReshowOwned(t *testing.T) {
	r := newRig(t)
	r.run("mkdir d; echo 1 > f")
	two, err := r.Run(context.Background(), Command{Text: "echo 2 > f", NoSnapshot: true})
	if err != nil {
		t.Fatal(err)
	}
	r.cut("session.rolled", func() error {
		_, err := r.Rollback(context.Background(), Target{ID: two.Snapshot.ID}, RollbackOptions{})
		return err
	})
	h := hold(t, filepath.Join(r.tree, "d"))
	r.reopen()
	if _, err := r.Session.Restore(context.Background()); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Error(err)
	}
	h.end()
	if _, err := r.Session.Restore(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.shows("rolled back", map[string]string{"f": "1\n"})
	if err := redo(r); err != nil {
		t.Fatal(err)
	}
	r.shows("redone", map[string]string{"f": "2\n"})
}
