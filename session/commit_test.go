package session

import (
	"context"
	"os/exec"
	"testing"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

func (r *rig) commit(through snapshot.ID) Committed {
	r.Helper()
	c, err := r.Commit(context.Background(), CommitOptions{Through: through})
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// commitCommands are commands that change a tree in every way that a layer knows.
var commitCommands = []string{
	"mkdir -p d/e d/h; echo 1 > d/f; echo 1 > d/e/g; echo k > d/k; ln d/k d/k2; echo s > d/f2; truncate -s 4M d/hole; mkfifo p; ln -s d l",
	"mv d n; echo 2 >> n/f; rm n/e/g; ln -s f n/l; chmod 4711 n/f2; touch -d @7 n/hole",
	"rm -r n/e; mkdir n/e; echo 3 > n/e/new; setfattr -n user.a -v b n; mv n/f x",
	"rm -r l; mkdir l; echo 4 > l/4; mv n/h h; chmod 700 .; chown 1:2 x",
	"mv h a; mv l h; mv a l; rm p; touch -d @9 .",
}

// TestCommit commits in steps: the tree shows the same all the time, what is
// committed cannot be gone back to, the rest can, and at the end the plain
// directory is what a plain directory that took the same commands is.
func TestCommit(t *testing.T) { onBoth(t, commitSteps) }

func commitSteps(t *testing.T, r *rig) {
	var ids []snapshot.ID
	pics := []treecmp.Picture{picture(t, r.tree)}
	for _, c := range commitCommands {
		res, out := r.run("cd " + r.tree + "; " + c)
		if res.Snapshot.ExitCode != 0 {
			t.Fatal(out)
		}
		ids = append(ids, res.Snapshot.ID)
		pics = append(pics, picture(t, r.tree))
	}
	c := r.commit(ids[1])
	if len(c.Snapshots) != 2 || c.Remaining != 3 || c.Plain || c.Pending {
		t.Errorf("%+v", c)
	}
	sameTree(t, "after a part", pics[5], r.tree)
	for _, id := range ids[:2] {
		_, err := r.Rollback(context.Background(), Target{ID: id}, RollbackOptions{})
		if snapshot.CodeOf(err) != snapshot.CodeExpired {
			t.Errorf("%s: %v", id, err)
		}
	}
	r.rollback(ids[3])
	sameTree(t, "rolled back above it", pics[3], r.tree)
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	sameTree(t, "and redone", pics[5], r.tree)
	r.rollback(ids[2])
	sameTree(t, "at what was committed", pics[2], r.tree)
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	c = r.commit("")
	if len(c.Snapshots) != 3 || c.Remaining != 0 || !c.Plain {
		t.Errorf("%+v", c)
	}
	if mounted(t, r.tree) {
		t.Error("still mounted")
	}
	sameTree(t, "plain", pics[5], r.tree)
	if d := treecmp.Diff(plainModel(t), picture(t, r.tree), treecmp.Options{
		AnyNlink: true, HoleSlack: 1 << 20,
		WantTime: crashTimes.WantTime, GotTime: crashTimes.GotTime,
	}); len(d) > 0 {
		t.Errorf("not what a plain directory is:\n%s", d)
	}
	if layers, err := r.drv.Layers(context.Background()); err != nil || len(layers) > 0 {
		t.Error(layers, err)
	}
	if c := r.commit(""); len(c.Snapshots) != 0 || !c.Plain {
		t.Errorf("nothing to commit: %+v", c)
	}
	res, _ := r.run("echo more > more")
	r.rollback(res.Snapshot.ID)
	sameTree(t, "one more, undone", pics[5], r.tree)
}

func plainModel(t *testing.T) treecmp.Picture {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("chmod", "755", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, c := range commitCommands {
		cmd := exec.Command("bash", "-c", c)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return picture(t, dir)
}
