package session

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// expireBut lets all snapshots but that of the newest command expire.
func (r *rig) expireBut(newest snapshot.ID) {
	r.Helper()
	x, err := r.CollectTo(context.Background(), Retention{Age: time.Hour, Last: 1}, false)
	if err != nil {
		r.Fatal(err)
	}
	var left []snapshot.ID
	for _, e := range historyOf(r.TB.(*testing.T), r) { //nolint:forcetypeassert // a test's
		if e.Kind == snapshot.KindCommand {
			left = append(left, e.ID)
		}
	}
	if len(x.Snapshots) == 0 || len(left) != 1 || left[0] != newest {
		r.Errorf("%+v; left: %v", x, left)
	}
}

// TestSealedExpire: points that are kept by copies expire like others while the tree is
// held, and the floor that is made of them can be gone back to, in place and by a swap.
func TestSealedExpire(t *testing.T) { onLayouts(t, testSealedExpire) }

func testSealedExpire(t *testing.T, r *rig) {
	r.run("mkdir -p d/e; echo 0 > d/f; echo 0 > d/e/g; echo log > log; chmod 640 log")
	h := hold(t, filepath.Join(r.tree, "d"))
	r.run("cd $DEPLOYX_TREE; echo 1 >> d/f; mv log log.1; echo 1 > log; ln log.1 log.2")
	r.put("d/service", "1\n")
	r.run("cd $DEPLOYX_TREE; mv d/e e; chmod 711 e; rm log.1; ln -s e l")
	r.put("d/service", "2\n")
	p3 := picture(t, r.tree)
	three, _ := r.run("cd $DEPLOYX_TREE; rm -r e l; mkdir e; echo 3 > e/new; echo 3 > d/f; chmod 700 .")
	p4 := picture(t, r.tree)

	r.expireBut(three.Snapshot.ID)
	r.same("after expiry", p4)
	if err := r.EmptyTrash(context.Background()); err != nil {
		t.Fatal(err)
	}
	if u := r.rollback(three.Snapshot.ID); !u.InPlace {
		t.Errorf("%+v", u)
	}
	r.same("on the floor, in place", p3)
	if err := redo(r); err != nil {
		t.Fatal(err)
	}
	r.same("redo", p4)

	four, _ := r.run("cd $DEPLOYX_TREE; rm -r e; mv d/f f; echo 4 > d/f")
	p5 := picture(t, r.tree)
	r.expireBut(four.Snapshot.ID)
	h.end()
	five, _ := r.run("echo 5 > five")
	if five.Snapshot.Mode != "" {
		t.Errorf("%+v", five.Snapshot)
	}
	r.rollback(five.Snapshot.ID)
	r.same("before five", p5)
	if u := r.rollback(four.Snapshot.ID); u.InPlace {
		t.Error("in place, though nobody holds the tree")
	}
	r.same("on the floor, by swap", p4)
	if x := r.expire(0); x.InUse != 0 {
		t.Errorf("%+v", x)
	}
	r.same("at the end", p4)
}

// TestExpireUnderReaders takes pictures of the whole tree all the while that snapshots
// expire, in a tree that is held and in one that is not: every one must be the same,
// but for the link counts.
func TestExpireUnderReaders(t *testing.T) {
	for _, held := range []bool{false, true} {
		t.Run(map[bool]string{false: "idle", true: "held"}[held], func(t *testing.T) {
			r := newRig(t)
			r.run("mkdir d")
			if held {
				hold(t, filepath.Join(r.tree, "d"))
			}
			for i := range 6 {
				text := fmt.Sprintf("mkdir -p t%[1]d/{a,b}/{1,2,3}; for f in t%[1]d/*/*; do for n in 1 2 3 4 5; do echo $n > $f/$n; done; done", i)
				if i%2 == 1 {
					text = fmt.Sprintf("mv t%[1]d/a t%[1]d/moved; rm -r t%[1]d/b/1; chmod 600 t%[1]d/b/2/*; echo more >> t%[1]d/b/3/1", i-1)
				}
				if res, out := r.run("cd $DEPLOYX_TREE; " + text); res.Snapshot.ExitCode != 0 {
					t.Fatal(out)
				}
			}
			looks, done := underReaders(t, r.tree)
			for last := len(historyOf(t, r)) - 1; last > 0; last-- {
				seen := looks()
				if _, err := r.CollectTo(context.Background(), Retention{Age: time.Hour, Last: last}, false); err != nil {
					t.Fatal(err)
				}
				for looks() < seen+4 && !t.Failed() {
					time.Sleep(time.Millisecond) //nolint:forbidigo // two looks by each that began after this fold
				}
			}
			if done(); len(historyOf(t, r)) != 1 {
				t.Error("not all have expired")
			}
		})
	}
}

// underReaders has two readers compare the tree with what it is now until done is
// called.
func underReaders(t *testing.T, tree string) (looks func() int64, done func()) {
	want := picture(t, tree)
	var stop atomic.Bool
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for !stop.Load() {
				got, err := treecmp.Take(tree)
				if err != nil {
					t.Error(err)
					return
				}
				if d := treecmp.Diff(want, got, treecmp.Options{AnyNlink: true}); len(d) > 0 {
					t.Errorf("seen meanwhile:\n%s", d)
					return
				}
				n.Add(1)
			}
		})
	}
	done = func() {
		stop.Store(true)
		wg.Wait()
	}
	t.Cleanup(done)
	return n.Load, done
}
