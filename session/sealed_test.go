package session

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// A service keeps the tree pinned: it stands in it and has a file open.
type service struct{ *exec.Cmd }

func hold(t testing.TB, dir string) service {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := service{cmd}
	t.Cleanup(h.end)
	return h
}

func (h service) end() {
	unix.Kill(h.Process.Pid, unix.SIGKILL) //nolint:errcheck // it may have ended
	h.Wait()                               //nolint:errcheck // it was killed
}

func (r *rig) put(name, text string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(r.tree, name), []byte(text), 0o644); err != nil {
		r.Fatal(err)
	}
}

// same compares the tree with a picture, but for link counts.
func (r *rig) same(what string, want treecmp.Picture) {
	r.Helper()
	if d := treecmp.Diff(want, picture(r.TB.(*testing.T), r.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 { //nolint:forcetypeassert // a test's
		r.Errorf("%s:\n%s", what, d)
	}
}

// TestSealed: in a pinned tree each command is undone alone, the holder goes on,
// and when it ends the old points are reached by a swap.
func TestSealed(t *testing.T) { onLayouts(t, testSealed) }

func testSealed(t *testing.T, r *rig) {
	r.run("mkdir d; echo 0 > d/f; echo log > log")
	p0 := picture(t, r.tree)
	h := hold(t, filepath.Join(r.tree, "d"))
	one, _ := r.run("cd $DEPLOYX_TREE; echo 1 > one; echo 1 >> d/f; mv log log.1; echo > log")
	if one.Snapshot.Mode != snapshot.ModeSealed || len(one.Snapshot.PinnedBy) != 1 || one.Snapshot.Changes.Total() != 4 {
		t.Errorf("%+v", one.Snapshot)
	}
	p1 := picture(t, r.tree)
	two, _ := r.run("mv d e; rm one; chmod 711 .")
	p2 := picture(t, r.tree)
	three, _ := r.run("rm -r e log; ln log.1 log.2")
	p3 := picture(t, r.tree)

	r.rollback(three.Snapshot.ID)
	r.same("before three", p2)
	r.rollback(two.Snapshot.ID)
	r.same("before two", p1)
	r.rollback(one.Snapshot.ID)
	r.same("before one", p0)
	for _, want := range []treecmp.Picture{p1, p2, p3} {
		if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
			t.Fatal(err)
		}
		r.same("redo", want)
	}
	u := r.rollback(two.Snapshot.ID)
	if !u.InPlace || len(u.Holders) != 1 || !u.Verified {
		t.Errorf("%+v", u)
	}
	r.same("before two again", p1)
	if err := redo(r); err != nil {
		t.Fatal(err)
	}
	h.end()

	four, _ := r.run("echo 4 > four")
	if four.Snapshot.Mode != "" {
		t.Errorf("%+v", four.Snapshot)
	}
	p4 := picture(t, r.tree)
	for _, step := range []struct {
		id   snapshot.ID
		want treecmp.Picture
	}{{four.Snapshot.ID, p3}, {three.Snapshot.ID, p2}, {two.Snapshot.ID, p1}, {one.Snapshot.ID, p0}} {
		if u := r.rollback(step.id); u.InPlace {
			t.Error("in place, though nobody holds the tree")
		}
		r.same("by swap", step.want)
	}
	if _, err := r.Redo(context.Background(), 4, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	r.same("redo by swap", p4)
	if h := r.rec.Head(); h.Stands != nil {
		t.Errorf("%+v", h)
	}
}

// TestSealedThenSwapped: a rollback in place, and one by a swap after the holder has
// ended.
func TestSealedThenSwapped(t *testing.T) { onLayouts(t, testSealedThenSwapped) }

func testSealedThenSwapped(t *testing.T, r *rig) {
	p0 := picture(t, r.tree)
	one, _ := r.run("echo 1 > one")
	p1 := picture(t, r.tree)
	h := hold(t, r.tree)
	two, _ := r.run("echo 2 > two")
	if u := r.rollback(two.Snapshot.ID); !u.InPlace || len(u.Stale) > 0 {
		t.Errorf("%+v", u)
	}
	r.same("before two", p1)
	h.end()
	if u := r.rollback(one.Snapshot.ID); u.InPlace || len(u.Stale) > 0 {
		t.Errorf("%+v", u)
	}
	r.same("before one", p0)
	hold(t, "/") // somebody who has nothing of the tree
	u, err := r.Redo(context.Background(), 1, RollbackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Stale) > 0 {
		t.Errorf("after a redo from a plain directory: %+v", u.Stale)
	}
	r.same("redo", p1)
}

// TestSealedGone: once nobody holds it, a tree in which all was undone in place is a
// plain directory again, and what was undone can be brought back.
func TestSealedGone(t *testing.T) { onLayouts(t, testSealedGone) }

func testSealedGone(t *testing.T, r *rig) {
	base := picture(t, r.tree)
	first, _ := r.run("echo 1 > a; mkdir d; echo x > d/f")
	h := hold(t, r.tree)
	r.run("echo 2 > b; rm d/f")
	all := picture(t, r.tree)
	r.rollback(first.Snapshot.ID)
	r.again()
	if r.rec.Head().Open == "" {
		t.Error("unmounted under a holder")
	}
	h.end()
	r.again()
	if open, err := r.drv.Shown(context.Background()); err != nil || open != "" || r.rec.Head().Open != "" {
		t.Errorf("still mounted: %q, %v", open, err)
	}
	r.same("nothing left", base)
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	r.same("brought back", all)
	r.rollback(first.Snapshot.ID)
	h = hold(t, r.tree)
	c, _ := r.run("echo 3 > c")
	r.rollback(c.Snapshot.ID)
	r.put("others", "wrote this")
	h.end()
	r.again()
	if _, err := os.Lstat(filepath.Join(r.tree, "others")); err != nil {
		t.Error(err)
	}
}

// TestSealedDrift: what a holder writes between the commands has entries of its
// own, and is in no command's.
func TestSealedDrift(t *testing.T) {
	r := newRig(t)
	r.run("mkdir d; echo 0 > d/f")
	hold(t, filepath.Join(r.tree, "d"))
	r.put("d/f", "service 1\n")
	a, _ := r.run("echo a > $DEPLOYX_TREE/a")
	r.put("d/g", "service 2\n")
	b, _ := r.run("echo b > $DEPLOYX_TREE/b")
	for _, x := range []Result{a, b} {
		if x.Snapshot.Changes != (snapshot.Counts{Added: 1}) {
			t.Errorf("%+v", x.Snapshot)
		}
	}
	var kinds []snapshot.Kind
	for _, e := range historyOf(t, r) {
		kinds = append(kinds, e.Kind)
	}
	if len(kinds) != 5 || kinds[1] != snapshot.KindDrift || kinds[3] != snapshot.KindDrift {
		t.Error(kinds)
	}
}

// TestSealedAlternates: the tree is pinned and let go again many times.
func TestSealedAlternates(t *testing.T) {
	r := newRig(t)
	r.run("mkdir d; seq 3 > d/f")
	type point struct {
		id snapshot.ID
		p  treecmp.Picture
	}
	var points []point
	for i := range 12 {
		h := hold(t, filepath.Join(r.tree, "d"))
		r.put("d/service", string(rune('a'+i)))
		if i%2 == 0 {
			h.end()
		}
		p := picture(t, r.tree)
		res, _ := r.run("cd $DEPLOYX_TREE; echo x >> d/f; mv d/f d/g; cp d/g d/f; mkdir -p n" + string(rune('a'+i)))
		points = append(points, point{res.Snapshot.ID, p})
		if i%3 == 0 {
			if err := r.Session.Close(); err != nil {
				t.Fatal(err)
			}
			r.reopen()
		}
		h.end()
	}
	last := hold(t, r.tree)
	for i := len(points) - 1; i >= 0; i-- {
		if i == 5 {
			last.end()
		}
		if _, err := r.Rollback(context.Background(), Target{ID: points[i].id}, RollbackOptions{Drift: DriftDrop}); err != nil {
			t.Fatal(err)
		}
		r.same("back", points[i].p)
	}
}

// TestSealedAttributes: what a command changed the attributes of alone, in a directory
// that goes, is put back in place like the rest.
func TestSealedAttributes(t *testing.T) {
	onLayouts(t, func(t *testing.T, r *rig) {
		r.run("cd $DEPLOYX_TREE")
		start := picture(t, r.tree)
		first, _ := r.run("mkdir d; echo 1 > d/f; echo 2 > d/g")
		r.run("chmod 600 d/f d/g")
		end := picture(t, r.tree)
		defer hold(t, r.tree).end()
		u := r.rollback(first.Snapshot.ID)
		if !u.InPlace {
			t.Error("not in place")
		}
		r.same("rolled back", start)
		if err := redo(r); err != nil {
			t.Fatal(err)
		}
		r.same("redone", end)
	})
}

// TestSealedRefusedOnce: a rollback in place that was taken back, for somebody wrote in
// the last moment, can be tried again.
func TestSealedRefusedOnce(t *testing.T) {
	onLayouts(t, func(t *testing.T, r *rig) {
		r.strict = false // it is told that what others wrote stays
		r.run("cd $DEPLOYX_TREE; echo 0 > f; echo 0 > g")
		start := picture(t, r.tree)
		one, _ := r.run("echo 1 > f; echo 1 > g")
		f := filepath.Join(r.tree, "f")
		was, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		defer hold(t, r.tree).end()
		off := crash.SetHook(func(p string) {
			if p == "session.rolled" {
				r.put("f", "theirs")
			}
		})
		_, err = r.Rollback(context.Background(), Target{ID: one.Snapshot.ID}, RollbackOptions{})
		off()
		if snapshot.CodeOf(err) != snapshot.CodeDriftConflict {
			t.Fatalf("it ended with: %v", err)
		}
		r.put("f", "1\n")
		if err := os.Chtimes(f, was.ModTime(), was.ModTime()); err != nil {
			t.Fatal(err)
		}
		if u := r.rollback(one.Snapshot.ID); !u.InPlace {
			t.Error("not in place")
		}
		r.same("rolled back", start)
	})
}

// rollbackInPlace is rollback, of a tree that is held.
func (r *rig) rollbackInPlace(id snapshot.ID) {
	r.Helper()
	if u := r.rollback(id); !u.InPlace {
		r.Errorf("not in place: %+v", u)
	}
}

// TestSealedRemovedAgain: a file that a rollback in place brought back, and that somebody
// removes before anything else is done, stays away: the removal is drift like any other.
func TestSealedRemovedAgain(t *testing.T) {
	r := newRig(t)
	r.run("cd $DEPLOYX_TREE; mkdir -p d/e")
	h := hold(t, r.tree)
	r.run("cd $DEPLOYX_TREE; echo 1 > d/e/f; echo 1 > top") // in the live layer alone
	gone, _ := r.run("cd $DEPLOYX_TREE; echo 2 > d/e/other; rm d/e/f top")
	r.rollbackInPlace(gone.Snapshot.ID)
	for _, name := range []string{"d/e/f", "top"} {
		if err := os.Remove(filepath.Join(r.tree, name)); err != nil {
			t.Fatal(err)
		}
	}
	after, _ := r.run("cd $DEPLOYX_TREE; echo 3 > three")
	if e, err := r.rec.Snapshot(after.Snapshot.Parent); err != nil || e.Kind != snapshot.KindDrift || e.Changes.Deleted != 2 {
		t.Errorf("below the command: %+v, %v", e, err)
	}
	h.end()
	r.run(":")
	want := files{"d": "dir", "d/e": "dir", "three": "644 3\n"}
	if d := unlike(want, readFiles(t, r.tree)); len(d) > 0 {
		t.Errorf("in a tree that nobody holds:\n%s", d)
	}
}

// TestSealedLinksInside: a rollback in place that makes a directory anew makes the names
// of one file in it one file again, below it too, and with one outside.
func TestSealedLinksInside(t *testing.T) {
	r := newRig(t)
	r.run("X=1")
	hold(t, r.tree)
	r.run("cd $DEPLOYX_TREE; mkdir -p d/e/g; echo 1 > d/a; ln d/a d/b; ln d/a d/e/g/c; ln d/a outside; echo 2 > d/e/x; ln d/e/x d/e/g/y")
	gone, _ := r.run("cd $DEPLOYX_TREE; rm -r d")
	r.rollbackInPlace(gone.Snapshot.ID)
	for name, want := range map[string]uint64{"d/a": 4, "d/b": 4, "d/e/g/c": 4, "outside": 4, "d/e/x": 2, "d/e/g/y": 2} {
		if n := links(t, filepath.Join(r.tree, name)); n != want {
			t.Errorf("%s has %d names, want %d", name, n, want)
		}
	}
}

// TestSealedLinksMoved: a directory that is moved under a pin keeps the names in it those of
// a file that has others outside, whatever of the way there is new, and whoever moved it.
func TestSealedLinksMoved(t *testing.T) {
	const here = "mkdir -p d/s; echo 1 > d/f; ln d/f out"
	for _, c := range []struct {
		name, make, move string
		names            []string
		changed          int // by the move
	}{
		{"made under the pin", here, "mkdir new; mv d new/d", []string{"new/d/f", "out"}, 2},
		{"older", "ln old/f out", "mkdir new; mv old new/d", []string{"new/d/f", "out"}, 2},
		{"older, into an older one", "ln old/f out", "mv old other/d", []string{"other/d/f", "out"}, 1},
		{"two of them", here + "; mkdir e; ln d/f e/f", "mkdir -p new/n; mv d new/n/d; mv e d", []string{"new/n/d/f", "d/f", "out"}, 4},
		{"and one in it", here + "; ln d/f d/s/f", "mkdir new; mv d new/d; mv new/d/s new/s", []string{"new/d/f", "new/s/f", "out"}, 3},
		{"and another name", here, "mkdir new; mv d new/d; ln out new/g", []string{"new/d/f", "new/g", "out"}, 3},
		{"to its place in another", "mkdir p; echo 1 > p/g; mkdir p/d; echo 1 > p/d/f; ln p/d/f out", "mv p q; mkdir p; mv q/d p/d", []string{"p/d/f", "out"}, 5},
		{"by others", here, "", []string{"e/f", "out"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			r.run("cd $DEPLOYX_TREE; mkdir old other; echo 0 > old/f; echo 0 > other/x")
			hold(t, r.tree)
			r.run(c.make)
			r.settled()
			if c.move == "" {
				c.move = r.meanwhile("mv d e") + "; echo > mine"
			}
			moved, _ := r.run(c.move)
			if n := moved.Snapshot.Changes.Total(); n != c.changed {
				t.Errorf("%d changes, want %d: %+v", n, c.changed, moved.Snapshot.Changes)
			}
			want := picture(t, r.tree)
			gone, _ := r.run("rm -r " + strings.Join(c.names, " "))
			r.rollbackInPlace(gone.Snapshot.ID)
			r.same("rolled back", want)
			for _, name := range c.names {
				if n := links(t, filepath.Join(r.tree, name)); n != uint64(len(c.names)) {
					t.Errorf("%s has %d names, want %d", name, n, len(c.names))
				}
			}
		})
	}
}

// TestSealedFlags: flags that a command under a pin sets, alone or of what it changed or
// made, go with a rollback in place and come back with a redo; and none is in the way.
func TestSealedFlags(t *testing.T) {
	onLayouts(t, func(t *testing.T, r *rig) {
		r.run("cd $DEPLOYX_TREE; mkdir -p d/s; for f in a d/f d/g d/s/h; do echo 1 > $f; done; ln d/g out")
		defer hold(t, r.tree).end()
		for _, text := range []string{
			"chattr +i a", "chattr +a d/f", "chattr +d a", "chattr +A d", "chattr +i d", "chattr +i .",
			"echo 2 > a; chattr +i a",
			"echo 2 > d/f; chattr +i d/f d",
			"rm d/f; echo 2 > d/s/n; chattr +a d/s d",
			"mkdir n; echo 2 > n/f; ln n/f n/g; ln d/g n/h; chattr +i n/f n/h n",
			"rm -r d/s out; chattr +i d",
		} {
			before := picture(t, r.tree)
			res, _ := r.run(text)
			if res.Snapshot.ExitCode != 0 {
				t.Fatalf("%s: exit status %d", text, res.Snapshot.ExitCode)
			}
			after := picture(t, r.tree)
			r.rollbackInPlace(res.Snapshot.ID)
			r.same(text+": rolled back", before)
			if err := redo(r); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			r.same(text+": redone", after)
			r.rollbackInPlace(res.Snapshot.ID)
			r.same(text+": rolled back again", before)
		}
	})
}

// settled has the tree looked at when what was written last is older than a tick of the
// clock that stamps it: then it need not be looked at again.
func (r *rig) settled() {
	r.Helper()
	var now unix.Timespec
	for end := time.Now().Add(20 * time.Millisecond).UnixNano(); now.Nano() < end; time.Sleep(time.Millisecond) {
		if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &now); err != nil {
			r.Fatal(err)
		}
	}
	r.run(":")
}

// meanwhile is a command that waits for a service to have done something in the tree.
func (r *rig) meanwhile(text string) string {
	r.Helper()
	dir := r.TempDir()
	for _, name := range []string{"go", "done"} {
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o600); err != nil {
			r.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "-c", `read <"$0/go"; `+text+`; echo >"$0/done"`, dir)
	cmd.Dir = r.tree
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(service{cmd}.end)
	return fmt.Sprintf("echo >'%s/go'; read <'%s/done'", dir, dir)
}

// TestSealedHiddenName: a file of which the layers hide a name is the same with those
// that are left: a rollback in place makes no drift.
func TestSealedHiddenName(t *testing.T) {
	r := newRig(t)
	r.run("X=1")
	hold(t, r.tree)
	r.run("cd $DEPLOYX_TREE; echo 1 > a; ln a b; ln a c")
	one, _ := r.run("cd $DEPLOYX_TREE; rm c")
	gone, _ := r.run("cd $DEPLOYX_TREE; rm a b")
	r.rollbackInPlace(gone.Snapshot.ID)
	after, _ := r.run(":")
	if after.Snapshot.Parent != one.Snapshot.ID {
		t.Errorf("the command stands on %s, want %s", after.Snapshot.Parent, one.Snapshot.ID)
	}
	if d := unlike(files{"a": "644 1\n", "b": "644 1\n"}, readFiles(t, r.tree)); len(d) > 0 || links(t, filepath.Join(r.tree, "a")) != 2 {
		t.Errorf("not one file: %s", d)
	}
}

func links(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Nlink)
}
