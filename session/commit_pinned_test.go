package session

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// base takes a picture of what is below the mount.
func (r *rig) base() treecmp.Picture {
	r.Helper()
	fd, err := unix.OpenTree(unix.AT_FDCWD, filepath.Dir(r.tree), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		r.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	p, err := treecmp.Take(fmt.Sprintf("/proc/self/fd/%d/%s", fd, filepath.Base(r.tree)))
	if err != nil {
		r.Fatal(err)
	}
	return p
}

// committedUnder commits all in a tree that is held: base has it, the tree shows
// the same, and the holder is named.
func (r *rig) committedUnder(what string, snapshots int) {
	r.Helper()
	want := picture(r.TB.(*testing.T), r.tree) //nolint:forcetypeassert // a test's
	c := r.commit("")
	if c.Pending || c.Plain || len(c.PinnedBy) != 1 || c.Remaining != 0 || len(c.Snapshots) != snapshots {
		r.Errorf("%s: %+v", what, c)
	}
	r.same(what, want)
	if d := treecmp.Diff(want, r.base(), treecmp.Options{AnyNlink: true}); len(d) > 0 {
		r.Errorf("%s: base:\n%s", what, d)
	}
	if d, err := r.Status(context.Background()); err != nil || d.Drift || !d.Retire {
		r.Errorf("%s: %+v %v", what, d, err)
	}
}

// TestCommitPinned: what was done in a tree that a service holds becomes part of
// base, what the service does afterwards and its end included, and in the end the
// tree is a plain directory.
func TestCommitPinned(t *testing.T) {
	for _, end := range []string{"ends", "reboot", "rolled back"} {
		t.Run(end, func(t *testing.T) {
			r := newRig(t)
			r.run("cd $DEPLOYX_TREE; mkdir d old; echo 0 > d/f; echo 0 > old/x; echo k > k")
			h := hold(t, filepath.Join(r.tree, "d"))
			r.run("cd $DEPLOYX_TREE; mkdir -p n/m; echo 1 > n/m/x; echo 1 >> d/f; rm -r old; chmod 711 d; echo 1 > one; ln -s one l")
			r.put("d/service", "1\n")
			r.run("cd $DEPLOYX_TREE; rm one; echo 2 > old; rm -r n; mkdir n; echo 2 > n/y; chmod 600 k; mkfifo p")
			r.committedUnder("all", 4)
			want := picture(t, r.tree)

			// The layers that the view stands on are still there.
			r.put("d/service", "2\n")
			if err := unix.Unlink(filepath.Join(r.tree, "n/y")); err != nil {
				t.Fatal(err)
			}
			three, _ := r.run("cd $DEPLOYX_TREE; echo 3 > three; rm -r d/f old")
			if st, err := r.Status(context.Background()); err != nil || st.Retire {
				t.Errorf("%+v %v", st, err)
			}
			if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{Drift: DriftDrop}); err != nil {
				t.Fatal(err)
			}
			r.same("back to what is committed", want)
			if err := redo(r); err != nil {
				t.Fatal(err)
			}
			if end == "rolled back" {
				r.rollback(three.Snapshot.ID)
			}
			r.committedUnder("the rest", map[string]int{"ends": 2, "reboot": 2, "rolled back": 1}[end])

			r.put("d/last", "words\n")
			want = picture(t, r.tree)
			h.end()
			if err := r.Session.Close(); err != nil {
				t.Fatal(err)
			}
			if !mounted(t, r.tree) {
				t.Error("not mounted any more: Close is to be quick")
			}
			if end == "reboot" {
				unmountAll(t, r.tree)
			}
			r.reopen()
			if x, err := r.Restore(context.Background()); err != nil || !x.Commit {
				t.Fatal(x, err)
			}
			r.same("restored", want)
			if err := r.FinishCommit(context.Background()); err != nil {
				t.Fatal(err)
			}
			if mounted(t, r.tree) {
				t.Error("still mounted")
			}
			sameTree(t, "plain", want, r.tree)
			if layers, err := r.drv.Layers(context.Background()); err != nil || len(layers) > 0 {
				t.Error(layers, err)
			}
		})
	}
}

// TestCommitPinnedMoved: a view that reads base by another name cannot have base
// changed below it. The commit takes place once nobody holds the tree.
func TestCommitPinnedMoved(t *testing.T) {
	r := newRig(t)
	if err := os.MkdirAll(filepath.Join(r.tree, "d", "e"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.put("d/e/f", "0\n")
	r.put("keep", "0\n")
	h := hold(t, r.tree)
	r.run("cd $DEPLOYX_TREE; echo 1 > one")
	h.end()
	h = hold(t, r.tree) // of the mount
	two, _ := r.run("cd $DEPLOYX_TREE; mv d moved; chmod 600 keep; echo 2 > moved/two")
	want := picture(t, r.tree)
	c := r.commit("")
	if !c.Pending || len(c.PinnedBy) != 1 {
		t.Errorf("%+v", c)
	}
	r.same("pending", want)
	if _, err := r.Rollback(context.Background(), Target{ID: two.Snapshot.ID}, RollbackOptions{}); snapshot.CodeOf(err) != snapshot.CodeExpired {
		t.Error(err)
	}
	r.put("moved/late", "3\n")
	r.run("cd $DEPLOYX_TREE; mv moved/e e")
	want = picture(t, r.tree)
	if c = r.commit(""); !c.Pending {
		t.Errorf("%+v", c)
	}
	r.same("pending again", want)
	h.end()
	if c = r.commit(""); c.Pending || !c.Plain {
		t.Errorf("%+v", c)
	}
	sameTree(t, "plain", want, r.tree)
}

// TestCommitPinnedDone: a commit that had to wait for the holder leaves no entry of
// which nobody did anything.
func TestCommitPinnedDone(t *testing.T) {
	r := newRig(t)
	if err := os.MkdirAll(filepath.Join(r.tree, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.run("cd $DEPLOYX_TREE; echo 1 > one")
	h := hold(t, r.tree)
	r.run("cd $DEPLOYX_TREE; mv d moved")
	if c := r.commit(""); !c.Pending {
		t.Errorf("%+v", c)
	}
	want := picture(t, r.tree)
	three, _ := r.run("cd $DEPLOYX_TREE; echo 3 > three")
	h.end()
	if err := r.FinishCommit(context.Background()); err != nil {
		t.Fatal(err)
	}
	if head := r.rec.Head(); head.Committing != "" || head.Stands != nil || head.Snapshot != three.Snapshot.ID {
		t.Errorf("%+v, want %s", head, three.Snapshot.ID)
	}
	r.rollback(three.Snapshot.ID)
	r.same("rolled back", want)
}

// TestCommitPinnedChanged: what is removed or moved between the copy and the
// commit does not come back, and goes along.
func TestCommitPinnedChanged(t *testing.T) {
	for _, change := range []string{
		"rm one n/x", "rm -r n", "mv n m", "mv one n/two; rm -r b", "rm -r n; mkdir n; echo other > n/x", "rm -r n; echo file > n", "mv b c; mkdir b",
	} {
		t.Run(change, func(t *testing.T) {
			r := newRig(t)
			if err := os.Mkdir(filepath.Join(r.tree, "b"), 0o755); err != nil {
				t.Fatal(err)
			}
			r.run("X=1")
			h := hold(t, r.tree)
			r.run("cd $DEPLOYX_TREE; echo 1 > one; mkdir -p n/m; echo 1 > n/x; echo 1 > b/new")
			n := 0
			restore := crash.SetHook(func(name string) {
				if name == "session.commit.begun" {
					if n++; n == 1 {
						sh(t, r.tree, change)
					}
				}
			})
			c := r.commit("")
			restore()
			plain := t.TempDir()
			sh(t, plain, "mkdir b; echo 1 > one; mkdir -p n/m; echo 1 > n/x; echo 1 > b/new; "+change)
			want := readFiles(t, plain)
			if d := unlike(want, readFiles(t, r.tree)); len(d) > 0 {
				t.Errorf("shown: %v", d)
			}
			if moves := strings.HasPrefix(change, "mv b"); c.Pending != moves {
				t.Errorf("%+v", c)
			}
			h.end()
			if c := r.commit(""); !c.Plain {
				t.Errorf("%+v", c)
			}
			if d := unlike(want, readFiles(t, r.tree)); len(d) > 0 {
				t.Errorf("plain: %v", d)
			}
		})
	}
}

// churner makes and removes files and directories, and at the end has left the
// newest three of each.
const churner = `
cd "$1"; n=0; echo
while read -t 0.0005; [ $? -gt 128 ]; do
	echo $n > f$n; mkdir d$n; echo $n > d$n/x; mv d$n e$n
	rm -rf f$((n - 3)) e$((n - 3)); n=$((n + 1))
done
echo $n`

// TestCommitPinnedChurn: nothing that a service removes while the tree is
// committed under it, again and again, comes back.
func TestCommitPinnedChurn(t *testing.T) {
	r := newRig(t)
	r.run("X=1; mkdir -p $DEPLOYX_TREE/data")
	cmd := exec.Command("bash", "-c", churner, "bash", filepath.Join(r.tree, "data"))
	in, out := testns.Start(t, cmd)
	defer func() { unix.Kill(cmd.Process.Pid, unix.SIGKILL); cmd.Wait() }() //nolint:errcheck // it may have ended
	testns.Line(t, out)
	whole := 0
	rounds := 8
	if os.Getenv("DEPLOYX_SOAK") != "" {
		rounds = 300
	}
	for i := range rounds {
		r.run(fmt.Sprintf("cd $DEPLOYX_TREE; echo %d > %d; rm -f %d", i, i, i-2))
		if c := r.commit(""); !c.Pending {
			whole++
		}
	}
	t.Logf("%d of %d whole", whole, rounds)
	in.Close() //nolint:errcheck // ends it
	line := testns.Line(t, out)
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var n int
	fmt.Sscan(line, &n) //nolint:errcheck // 0 is told by what follows
	want := files{"data": "dir"}
	for i := rounds - 2; i < rounds; i++ {
		want[fmt.Sprint(i)] = fmt.Sprintf("644 %d\n", i)
	}
	for i := max(0, n-3); i < n; i++ {
		want[fmt.Sprintf("data/f%d", i)] = fmt.Sprintf("644 %d\n", i)
		want[fmt.Sprintf("data/e%d", i)], want[fmt.Sprintf("data/e%d/x", i)] = "dir", fmt.Sprintf("644 %d\n", i)
	}
	if d := unlike(want, readFiles(t, r.tree)); len(d) > 0 || n < 5 {
		t.Errorf("%d rounds of the service: %v", n, d)
	}
	if c := r.commit(""); !c.Plain {
		t.Errorf("%+v", c)
	}
	if d := unlike(want, readFiles(t, r.tree)); len(d) > 0 {
		t.Errorf("plain: %v", d)
	}
}

// TestCommitPinnedAttributes: a commit in a held tree gives a file of base, of which a
// command has changed the attributes alone, another inode, for it has a name outside.
// The layer that is still shown finds it all the same when the kernel looks anew.
func TestCommitPinnedAttributes(t *testing.T) {
	r := newRigIn(t, testns.NewImage(t, testns.ImageOptions{}).Dir)
	f := filepath.Join(r.tree, "f")
	bash(t, r.tree, "echo 1 > f; ln f ../outside")
	r.run("cd $DEPLOYX_TREE; echo x > x")
	h := hold(t, r.tree)
	r.run("chmod 600 f")
	if err := commitAll(r); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0o200); err != nil {
		t.Fatal(err)
	}
	if v, err := value(f); err != nil || v != "600 1\n" {
		t.Errorf("%q, %v", v, err)
	}
	h.end()
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	unmountAll(t, r.tree)
	r.reopen()
	defer func() { // before the image goes
		if err := r.Session.Close(); err != nil {
			t.Error(err)
		}
		unmountAll(t, r.tree)
		r.reopen()
	}()
	if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if v, err := value(f); err != nil || v != "600 1\n" {
		t.Errorf("after a boot: %q, %v", v, err)
	}
}
