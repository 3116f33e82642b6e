package session

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"deployx/internal/crash"
	"deployx/snapshot"
)

func (r *rig) shows(what string, want map[string]string) {
	r.Helper()
	for name, text := range want {
		if b, err := os.ReadFile(filepath.Join(r.tree, name)); err != nil || string(b) != text {
			r.Errorf("%s: %s is %q, %v; want %q", what, name, b, err, text)
		}
	}
}

// TestLastMoment: what a service writes between the last look and a rollback in
// place is not overwritten: the rollback is refused, and nothing of it is done.
func TestLastMoment(t *testing.T) {
	r := newRig(t)
	r.run("mkdir d; echo old > d/f; echo old > a; echo old > z; echo old > gone")
	hold(t, filepath.Join(r.tree, "d"))
	res, _ := r.run("for f in a z d/f new; do echo command > $f; done; rm gone")
	for _, name := range []string{"d/f", "new", "gone"} {
		unhook := crash.SetHook(func(at string) {
			if at == "session.rolled" {
				r.put(name, "service\n")
			}
		})
		_, err := r.Rollback(context.Background(), Target{ID: res.Snapshot.ID}, RollbackOptions{Drift: DriftDrop})
		unhook()
		if snapshot.CodeOf(err) != snapshot.CodeDriftConflict {
			t.Errorf("%s: %v", name, err)
		}
		r.shows("refused", map[string]string{name: "service\n", "a": "command\n", "z": "command\n"})
		if _, err := os.Lstat(filepath.Join(r.tree, "gone")); name != "gone" && err == nil {
			t.Error("gone is there")
		}
		if name == "gone" {
			break
		}
		r.put(name, "command\n")
	}
	if _, err := r.Rollback(context.Background(), Target{ID: res.Snapshot.ID}, RollbackOptions{Drift: DriftDrop}); err != nil {
		t.Fatal(err)
	}
	r.shows("dropped", map[string]string{"d/f": "old\n", "a": "old\n", "z": "old\n", "gone": "old\n"})
}

// TestLastMomentCut: a rollback in place was cut off, and a service has written since
// to what it had put back already. The next deployx finishes it and leaves that.
func TestLastMomentCut(t *testing.T) {
	r := newRig(t)
	r.run("mkdir d; echo old > d/f; echo old > a; echo old > z")
	hold(t, filepath.Join(r.tree, "d"))
	res, _ := r.run("echo command > a; echo command > z; echo command > d/f; mkdir n; echo command > n/f")
	done := 0
	func() {
		defer func() { recover() }() //nolint:errcheck // stands for a kill
		defer crash.SetHook(func(at string) {
			if done++; at == "overlay.restored" && done > 2 {
				panic("killed")
			}
		})()
		r.rollback(res.Snapshot.ID)
	}()
	r.put("a", "service\n")
	r.put("d/f", "service\n")
	r.put("n/f", "service\n")
	r.reopen()
	if _, err := r.Session.Restore(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.shows("finished", map[string]string{"a": "service\n", "d/f": "service\n", "n/f": "service\n", "z": "old\n"})
	if h := r.rec.Head(); h.Restoring != nil {
		t.Errorf("%+v", h)
	}
	drift, _ := r.run("echo $DEPLOYX_SNAPSHOT > next")
	e, err := r.rec.Snapshot(drift.Snapshot.Parent)
	if err != nil || e.Kind != snapshot.KindDrift || e.Changes.Total() < 3 {
		t.Errorf("what the service wrote: %+v, %v", e, err)
	}
}
