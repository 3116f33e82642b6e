package session

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"deployx/internal/mounts"
	"deployx/overlay"
	"deployx/snapshot"
)

func bash(t testing.TB, dir, script string) {
	t.Helper()
	c := exec.Command("bash", "-ec", script)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// below lists what is mounted below the tree, as it is seen.
func (r *rig) below() string {
	r.Helper()
	list, err := mounts.Below(r.tree)
	if err != nil {
		r.Fatal(err)
	}
	var names []string
	for _, m := range list {
		names = append(names, strings.TrimPrefix(m.Mountpoint, r.tree+"/"))
	}
	return strings.Join(names, " ")
}

// withMount gives a tree a filesystem of its own on data.
func (r *rig) withMount() {
	r.Helper()
	bash(r, r.tree, "mkdir data; echo under > data/under; mount -t tmpfs t data; echo 0 > data/n")
	r.Cleanup(func() {
		if err := r.tidy(context.Background()); err != nil {
			r.Error(err)
		}
		bash(r, r.tree, "umount data; test $(cat data/under) = under")
		if n := strings.Count(readFile(r, "/proc/self/mountinfo"), " "+r.tree+"/"); n > 0 {
			r.Errorf("%d mounts are left below the tree", n)
		}
	})
}

func readFile(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestUncovered: commands, rollbacks and redos leave what is mounted below the
// tree alone and name it, what a command mounts or unmounts too; and a state
// that has nothing to mount it on is refused before anything is changed.
func TestUncovered(t *testing.T) { onBoth(t, uncovered) }

func uncovered(t *testing.T, r *rig) {
	r.withMount()
	one, _ := r.run("echo 1 > one; echo 1 > data/n")
	if len(one.Uncovered) != 1 || one.Uncovered[0].Path != filepath.Join(r.tree, "data") || one.Uncovered[0].Change != "" || one.Snapshot.Changes.Total() != 1 {
		t.Errorf("%+v %+v", one.Uncovered, one.Snapshot.Changes)
	}
	if _, out := r.run("cd data; pwd; cat n"); out != r.tree+"/data\n1\n" {
		t.Errorf("%q", out)
	}
	two, _ := r.run("pwd; cd ..; mkdir -p new/deep; mount -t tmpfs n new/deep; echo d > new/deep/d; echo 2 >> one")
	if len(two.Uncovered) != 2 || two.Uncovered[1].Change != snapshot.Mounted {
		t.Errorf("%+v", two.Uncovered)
	}
	for _, target := range []Target{{ID: two.Snapshot.ID}, {All: true}} {
		head := r.rec.Head()
		_, err := r.Rollback(context.Background(), target, RollbackOptions{})
		var e *snapshot.Error
		if !errors.As(err, &e) || e.Code != snapshot.CodeTreeBusy || len(e.Holders) != 1 || e.Holders[0].Path != filepath.Join(r.tree, "new/deep") {
			t.Errorf("%+v: %v", target, err)
		}
		// The driver that copies finds out while it restores, and goes back.
		if now := r.rec.Head(); now.Snapshot != head.Snapshot || r.opts.Tree.Driver == overlay.Name && now.Seq != head.Seq {
			t.Errorf("the head moved: %+v", now)
		}
	}
	if got := r.below(); got != "data new/deep" {
		t.Errorf("%q", got)
	}
	three, _ := r.run("umount new/deep; echo 3 > three")
	if len(three.Uncovered) != 2 || three.Uncovered[1].Change != snapshot.Unmounted {
		t.Errorf("%+v", three.Uncovered)
	}
	r.run("rm -r new; echo 4 > four")
	u := r.rollback(two.Snapshot.ID)
	if len(u.Uncovered) != 1 || r.below() != "data" || readFile(t, filepath.Join(r.tree, "one")) != "1\n" {
		t.Errorf("%+v %q", u.Uncovered, r.below())
	}
	if err := redo(r); err != nil {
		t.Fatal(err)
	}
	bash(t, r.tree, "test -e four; ! test -e new; test $(cat data/n) = 1")
	st, err := r.Status(context.Background())
	if err != nil || len(st.Uncovered) != 1 || st.Drift || len(st.PinnedBy) > 0 {
		t.Errorf("%+v %v", st, err)
	}
	r.run("rm four") // and a history that leads on
	if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	bash(t, r.tree, "! test -e one; test $(cat data/n) = 1")
}

// TestUncoveredHeld: a tree that is held keeps its mounts while commands are
// sealed and undone in place, and after the holder has gone.
func TestUncoveredHeld(t *testing.T) {
	r := newRig(t)
	r.withMount()
	r.run("mkdir d; echo 0 > d/f")
	h := hold(t, filepath.Join(r.tree, "data")) // in the mount: its way out of it would be lost
	one, _ := r.run("echo 1 > one; echo 1 > d/f; mkdir made; mount -t tmpfs m made; echo 1 > data/n")
	if one.Snapshot.Mode != snapshot.ModeSealed || one.Snapshot.Changes.Total() != 3 {
		t.Errorf("%+v", one.Snapshot)
	}
	if _, err := r.Rollback(context.Background(), Target{ID: one.Snapshot.ID}, RollbackOptions{}); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Error(err)
	}
	bash(t, r.tree, "test -e one; umount made")
	if u := r.rollback(one.Snapshot.ID); !u.InPlace {
		t.Errorf("%+v", u)
	}
	bash(t, r.tree, "! test -e one; ! test -e made; test $(cat d/f) = 0; test $(cat data/n) = 1")
	h.end()
	r.run("echo 2 > two")
	if got := r.below(); got != "data" {
		t.Errorf("%q", got)
	}
	bash(t, r.tree, "test $(cat data/n) = 1")
	hold(t, filepath.Join(r.tree, "d"))
	beneathMount(t, r)
	if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
}

// beneathMount undoes what was done to a directory that has been mounted over
// since: below the mount, and not in it.
func beneathMount(t *testing.T, r *rig) {
	r.run("mkdir x; echo 1 > x/f; echo 1 > x/gone")
	two, _ := r.run("echo 2 > x/f; echo 2 > x/g; rm x/gone")
	bash(t, r.tree, "mount -t tmpfs x x; echo mine > x/f; echo mine > x/g")
	r.rollback(two.Snapshot.ID)
	bash(t, r.tree, "test $(cat x/f x/g | uniq) = mine; ! test -e x/gone; umount x; test $(cat x/f x/gone | uniq) = 1; ! test -e x/g")
}

// TestUncoveredBeneath is that in a tree which nobody holds.
func TestUncoveredBeneath(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		r.withMount()
		beneathMount(t, r)
		if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
			t.Fatal(err)
		}
	})
}

// TestUncoveredCommit: a commit changes base below the mounts, and the tree is a
// plain directory with them afterwards.
func TestUncoveredCommit(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		r.withMount()
		r.run("echo 1 > one; mkdir made")
		bash(t, r.tree, "mount -t tmpfs m made; echo m > made/m")
		r.run("echo 2 > two")
		if _, err := r.Commit(context.Background(), CommitOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := r.tidy(context.Background()); err != nil {
			t.Fatal(err)
		}
		if mounted(t, r.tree) {
			t.Error("still mounted")
		}
		bash(t, r.tree, "test -e one; test -e two; test $(cat data/n) = 0; test $(cat made/m) = m; umount made; ! test -e made/m")
	})
}
