package session

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/snapshot"
)

func (r *rig) expire(age time.Duration) Expired {
	r.Helper()
	x, err := r.Collect(context.Background(), age, false)
	if err != nil {
		r.Fatal(err)
	}
	return x
}

// TestExpire: old snapshots cannot be gone back to, what their commands did
// stays, newer ones go on working, and disk use shrinks.
func TestExpire(t *testing.T) { onBoth(t, expire) }

func expire(t *testing.T, r *rig) {
	var old []snapshot.ID
	for _, c := range []string{"mkdir -p d/e; echo 1 > d/f; echo 1 > d/e/g", "mv d n; echo 2 >> n/f", "rm n/e/g; chmod 700 ."} {
		res, _ := r.run(c)
		old = append(old, res.Snapshot.ID)
	}
	undone, _ := r.run("echo undone > undone")
	r.rollback(undone.Snapshot.ID)
	time.Sleep(20 * time.Millisecond) //nolint:forbidigo // age is what is tested
	start := time.Now()
	time.Sleep(500 * time.Millisecond) //nolint:forbidigo // likewise: longer than it takes to come from an age to a time
	p0 := picture(t, r.tree)
	a, _ := r.run("echo a > a")
	p1 := picture(t, r.tree)
	b, _ := r.run("echo b > b")
	p2 := picture(t, r.tree)

	x := r.expire(time.Since(start))
	if len(x.Snapshots) != 3 || len(x.Undone) != 1 {
		t.Errorf("%+v", x)
	}
	sameTree(t, "after expiry", p2, r.tree)
	want := map[snapshot.ID]snapshot.Code{undone.Snapshot.ID: snapshot.CodeUnknownSnapshot} // it is above the floor, and its entry is gone
	for _, id := range old {
		want[id] = snapshot.CodeExpired
	}
	for id, want := range want {
		_, err := r.Rollback(context.Background(), Target{ID: id}, RollbackOptions{})
		if c := snapshot.CodeOf(err); err == nil || c != want {
			t.Errorf("%s: %v, want %s", id, err, want)
		}
	}
	c, _ := r.run("echo c > c")
	if x := r.expire(time.Since(start)); x.InUse != 0 || x.Discarded == 0 {
		t.Errorf("after the next swap the old layers go: %+v", x)
	}
	r.rollback(c.Snapshot.ID)
	r.reopen()
	r.rollback(b.Snapshot.ID)
	sameTree(t, "before b", p1, r.tree)
	r.rollback(a.Snapshot.ID)
	sameTree(t, "before a, on the floor", p0, r.tree)
	if r.opts.Tree.Driver == overlay.Name && !mounted(t, r.tree) {
		t.Error("the floor is not mounted")
	}
	if err := r.EmptyTrash(context.Background()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(r.opts.Tree.Store, "layers", "trash")); err != nil || len(left) != 0 {
		t.Error(left, err)
	}
	again := r.expire(0)
	if len(again.Snapshots) != 0 {
		t.Errorf("nothing is above the floor: %+v", again)
	}
	sameTree(t, "at the end", p0, r.tree)
	r.run("echo d > d")
	r.expire(0)
	if _, err := r.Rollback(context.Background(), Target{ID: undone.Snapshot.ID}, RollbackOptions{}); err == nil || snapshot.CodeOf(err) != snapshot.CodeExpired {
		t.Errorf("one that was rolled back, once the floor is above it: %v", err)
	}
}

// TestExpireAgain: an expiry every hour leaves nothing more behind than one.
func TestExpireAgain(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		var first map[string]int
		for i := range 8 {
			r.run(fmt.Sprintf("echo %d > f%d", i, i%2))
			r.run("echo x >> g")
			if i%2 == 0 {
				undone, _ := r.run("echo undone > undone")
				r.rollback(undone.Snapshot.ID)
			}
			r.expire(0)
			left := map[string]int{}
			for _, dir := range []string{"record", "output", "contexts"} {
				names, err := os.ReadDir(filepath.Join(r.opts.Tree.Store, dir))
				if err != nil && !os.IsNotExist(err) {
					t.Fatal(err)
				}
				left[dir] = len(names)
			}
			if i == 1 { // from here on there is a spare head, and a floor
				first = left
			}
			if i > 1 && !maps.Equal(left, first) {
				t.Fatalf("after %d: %v, before %v", i, left, first)
			}
		}
	})
}

// sameTree compares, but for the link counts of merged layers.
func sameTree(t *testing.T, what string, want treecmp.Picture, tree string) {
	t.Helper()
	if d := treecmp.Diff(want, picture(t, tree), treecmp.Options{AnyNlink: true}); len(d) > 0 {
		t.Errorf("%s:\n%s", what, d)
	}
}
