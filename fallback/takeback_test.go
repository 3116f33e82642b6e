package fallback_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// hinder makes the nth step of a restore fail, by making the directory in which
// it works immutable, and lets the restore be taken back.
type hinder struct {
	dir   string
	n     int
	steps int
	back  func(n int) // called before each step back
	backs int
}

func (h *hinder) point(name string) {
	switch name {
	case "fallback.apply.op", "fallback.apply.settle":
		if h.steps++; h.steps == h.n && h.backs == 0 {
			chattr(h.dir, 0x10)
		}
	case "fallback.back.op":
		chattr(h.dir, 0)
		if h.backs++; h.back != nil {
			h.back(h.backs)
		}
	}
}

func chattr(dir string, flags int) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, flags|0x80000) // extents, which stay
		unix.Close(fd)                                                         //nolint:errcheck // only read
	}
	if err != nil {
		panic(err)
	}
}

const takeBackBase = `mkdir -p d/e/g; for i in 1 2 3 4 5 6; do echo $i >d/$i; echo $i >d/e/$i; done; ln d/1 d/one; chmod 640 d/6`

const takeBackChange = `cd d; echo changed >1; rm 2; echo new >new; chmod 600 3; ln -sf x 4; rm -r e; mkdir 22; echo n >22/n; touch 5; rm 6; mkdir 6`

// TestTakeBack: a restore that fails at any step leaves the tree exactly as it
// was, inode numbers too, and can be tried again.
func TestTakeBack(t *testing.T) {
	for n := 1; ; n++ {
		if !takeBack(t, n) {
			if n < 8 {
				t.Errorf("only %d steps: the test shows too little", n-1)
			}
			return
		}
	}
}

func takeBack(t *testing.T, n int) (failed bool) {
	dir := testns.NewImage(t, testns.ImageOptions{}).Dir
	tree := filepath.Join(dir, "tree")
	must(t, os.Mkdir(tree, 0o755))
	script(t, tree, takeBackBase)
	d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: filepath.Join(dir, "state")})
	must(t, err)
	v := show(t, d)
	base := picture(t, tree)
	script(t, tree, takeBackChange)
	v = push(t, d, v)
	changed, inodes := picture(t, tree), listing(t, tree)
	h := &hinder{dir: filepath.Join(tree, "d"), n: n}
	restore := crash.SetHook(h.point)
	_, err = d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	restore()
	failed = err != nil
	if failed {
		if !strings.Contains(err.Error(), "operation not permitted") {
			t.Fatal(err)
		}
		diff(t, changed, picture(t, tree))
		if now := listing(t, tree); now != inodes {
			t.Errorf("step %d: inodes before:\n%s\nafter:\n%s", n, inodes, now)
		}
		if dirty(t, d, v) {
			t.Errorf("step %d: dirty after a restore was taken back", n)
		}
	}
	chattr(h.dir, 0)
	show(t, d)
	diff(t, base, picture(t, tree))
	must(t, d.Close())
	return failed
}

// listing has the inode number of every path.
func listing(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("find", dir, "-printf", `%i %P\n`).Output()
	must(t, err)
	return string(out)
}

// TestKilledInTakeBack: killed while it takes a restore back, the next open
// brings the tree to one of the two ends.
func TestKilledInTakeBack(t *testing.T) {
	if dir := os.Getenv(envPlace); dir != "" {
		killedChild(t, dir)
		return
	}
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) { killedInTakeBack(t, n) })
	}
}

func killedInTakeBack(t *testing.T, n int) {
	dir := testns.NewImage(t, testns.ImageOptions{}).Dir
	tree := filepath.Join(dir, "tree")
	must(t, os.Mkdir(tree, 0o755))
	script(t, tree, takeBackBase)
	base := picture(t, tree)
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestKilledInTakeBack$")
	cmd.Env = append(os.Environ(), envPlace+"="+dir, fmt.Sprintf("DEPLOYX_TEST_KILL=%d", n))
	out, err := cmd.CombinedOutput()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != unix.SIGKILL {
		t.Fatalf("the child was not killed: %v\n%s", err, out)
	}
	changed := picture(t, filepath.Join(dir, "changed"))
	chattr(filepath.Join(tree, "d"), 0)
	for range 2 {
		d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: filepath.Join(dir, "state")})
		must(t, err)
		now := picture(t, tree)
		atBase := len(treecmp.Diff(base, now, treecmp.Options{})) == 0
		if !atBase {
			diff(t, changed, now)
		}
		shown, err := d.Shown(t.Context())
		must(t, err)
		if atBase != (shown == "base") {
			t.Errorf("the tree is at base: %v, and the driver says it shows %q", atBase, shown)
		}
		must(t, d.Close())
	}
	d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: filepath.Join(dir, "state")})
	must(t, err)
	show(t, d)
	diff(t, base, picture(t, tree))
	left, err := os.ReadDir(filepath.Join(dir, "state", "stage"))
	must(t, err)
	if len(left) > 0 {
		t.Errorf("a stage was left: %v", left)
	}
	must(t, d.Close())
}

func killedChild(t *testing.T, dir string) {
	tree := filepath.Join(dir, "tree")
	d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: filepath.Join(dir, "state")})
	must(t, err)
	v := show(t, d)
	script(t, tree, takeBackChange)
	push(t, d, v)
	script(t, dir, `cp -a tree changed`)
	h := &hinder{dir: filepath.Join(tree, "d"), n: 6, back: func(n int) {
		if fmt.Sprint(n) == os.Getenv("DEPLOYX_TEST_KILL") {
			unix.Kill(os.Getpid(), unix.SIGKILL) //nolint:errcheck // seen by the parent
			select {}
		}
	}}
	defer crash.SetHook(h.point)()
	_, err = d.Show(t.Context(), snapshot.View{Open: "base"})
	t.Fatalf("the child lives: %v", err)
}
