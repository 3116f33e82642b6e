package fallback_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
	"deployx/snapshot/snapshottest"
)

const nobody = 65534

// envPlace tells a child without root where it may work.
const envPlace = "DEPLOYX_TEST_UNPRIVILEGED"

// asNobody runs a test of this binary again, in a process without root. The
// capabilities are what it keeps.
func asNobody(t *testing.T, run, skip, dir string, caps ...uintptr) {
	t.Helper()
	args := []string{"-test.count=1", "-test.run=" + run, "-test.skip=" + skip}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), envPlace+"="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: caps}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// nobodysPlace is a directory of nobody's on a filesystem in memory.
func nobodysPlace(t *testing.T) string {
	t.Helper()
	img := testns.NewImage(t, testns.ImageOptions{Size: 1 << 30}).Dir
	must(t, os.Chmod(filepath.Dir(img), 0o755)) // t.TempDir is for its owner alone
	dir := filepath.Join(img, "place")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestUnprivileged runs the suites without root. The child may look into and
// remove everything, since the suite does so to compare: it may not change
// owners, make devices, or set what only root sets. What rights to files do to
// the driver is TestOwnFiles.
func TestUnprivileged(t *testing.T) {
	const rootOnly = "^TestAsNobody$/^suite$/./^(full_disk|modes|owners|extended_attributes|capabilities|ACLs|the_root.s_own.*|opened_for_writing|flags|only_looking|special_files.*|a_device.*|hard_links_of_what.*)$"
	asNobody(t, "^TestAsNobody$", rootOnly, nobodysPlace(t), unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH)
}

// TestAsNobody is the child of TestUnprivileged; by itself it does nothing.
func TestAsNobody(t *testing.T) {
	parent := os.Getenv(envPlace)
	if parent == "" {
		return
	}
	o := snapshottest.Options{Place: func(t *testing.T) snapshottest.Place {
		t.Helper()
		dir, err := os.MkdirTemp(parent, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			out, err := exec.Command("sh", "-c", `chmod -R u+rwx "$1" && rm -rf "$1"`, "sh", dir).CombinedOutput()
			if err != nil {
				t.Errorf("clean up: %v\n%s", err, out)
			}
		})
		p := snapshottest.Place{
			Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state"), Plain: filepath.Join(dir, "plain", "now"),
		}
		for _, d := range []string{p.Tree, p.State, p.Plain} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}}
	t.Run("suite", func(t *testing.T) { o.Run(t, open) })
	t.Run("crash", func(t *testing.T) { o.Crash(t, open) })
}

// TestOwnFiles: without any capability the driver keeps files that are its
// user's own, also those that he himself may not read or write.
func TestOwnFiles(t *testing.T) {
	dir := nobodysPlace(t)
	tree := filepath.Join(dir, "tree")
	script(t, dir, `mkdir tree; cd tree; mkdir -p d/ro d/s; echo f >d/ro/f; echo g >g; ln g h; ln -s g l; mkfifo p; : >empty
		truncate -s 1M hole; setfattr -n user.a -v b g; chmod 0 h; chmod 555 d/ro; chmod 200 empty; echo 1 >d/s/1`)
	before := picture(t, tree)
	asNobody(t, "^TestOwnFilesChild$", "^$", dir)
	diff(t, before, picture(t, tree))
}

// TestOwnFilesChild shows, changes, rolls back, redoes and hides; by itself it
// does nothing.
func TestOwnFilesChild(t *testing.T) {
	dir := os.Getenv(envPlace)
	if dir == "" {
		return
	}
	tree := filepath.Join(dir, "tree")
	var warned []string
	d, err := fallback.Open(t.Context(), fallback.Options{
		Tree: tree, State: filepath.Join(dir, "state"), Warn: func(s string) { warned = append(warned, s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	v := show(t, d)
	if len(warned) != 1 || !strings.Contains(warned[0], "cannot put back: other owners") {
		t.Errorf("told before the first command: %q", warned)
	}
	script(t, tree, `chmod 755 d/ro; echo more >>d/ro/f; rm -f h; chmod 0 g; rm -rf d/s empty; mkdir d/ro/x; chmod 555 d/ro d; mv hole hole2`)
	v = push(t, d, v)
	script(t, tree, `chmod 755 d d/ro; rm -rf d; echo file >d; chmod 444 d; chmod 555 .`)
	v = push(t, d, v)
	kept := v.Layers
	show(t, d, kept[:1]...)
	show(t, d, kept...)
	show(t, d, kept[:1]...)
	must(t, d.Hide(t.Context()))
	must(t, d.Close())
	if len(warned) != 1 {
		t.Errorf("told %d times: %q", len(warned), warned)
	}
}

// script runs bash in dir, as the user that the test runs as; nobody if root.
func script(t testing.TB, dir, text string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-ec", text)
	cmd.Dir = dir
	if os.Geteuid() == 0 && strings.Contains(dir, "/place") {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func picture(t testing.TB, dir string) treecmp.Picture {
	t.Helper()
	p, err := treecmp.Take(dir)
	must(t, err)
	return p
}

func diff(t testing.TB, want, got treecmp.Picture) {
	t.Helper()
	if d := treecmp.Diff(want, got, treecmp.Options{HoleSlack: 64 << 10}); len(d) > 0 {
		t.Fatalf("the tree is not what it was:\n%v", d)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// show shows layers with a new open layer on top.
func show(t testing.TB, d *fallback.Driver, layers ...snapshot.LayerID) snapshot.View {
	t.Helper()
	v := snapshot.View{Layers: layers, Open: snapshot.NewLayerID()}
	_, err := d.Show(t.Context(), v)
	must(t, err)
	return v
}

// push seals the open layer, which must have changed.
func push(t testing.TB, d *fallback.Driver, v snapshot.View) snapshot.View {
	t.Helper()
	if !dirty(t, d, v) {
		t.Fatal("nothing has changed")
	}
	return show(t, d, append(v.Layers[:len(v.Layers):len(v.Layers)], v.Open)...)
}

func dirty(t testing.TB, d *fallback.Driver, v snapshot.View) bool {
	t.Helper()
	is, err := d.Dirty(t.Context(), v)
	must(t, err)
	return is
}
