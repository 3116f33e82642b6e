package session

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/logdisk"
	"deployx/internal/testns"
	"deployx/overlay"
	"deployx/snapshot"
)

// TestMain also plays the reader of late output, a service and a disk.
func TestMain(m *testing.M) {
	logdisk.Main()
	if len(os.Args) > 1 && os.Args[1] == "late-output" {
		if err := ReadLate(os.Args[2:]); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "stream" {
		if err := stream(os.Args[2]); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "suite-ops" {
		if err := suiteOps(os.Args[2], os.Args[3]); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	testns.Main(m)
}

// rig is a session on a tree of its own, in the subtree layout.
type rig struct {
	testing.TB
	*Session
	tree   string
	opts   Options
	strict bool            // a warning is an error
	hook   func(at string) // see surprised
}

func newRig(t testing.TB) *rig { return newRigIn(t, t.TempDir()) }

// onBoth runs a test on either driver.
func onBoth(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Run(overlay.Name, func(t *testing.T) { f(t, newRig(t)) })
	t.Run(fallback.Name, func(t *testing.T) { f(t, newRigWith(t, t.TempDir(), fallback.Name)) })
}

// newRigIn is newRig in a given directory.
func newRigIn(t testing.TB, dir string) *rig { return newRigWith(t, dir, overlay.Name) }

// envOld has every test work in the ways of old kernels: make soak.
const envOld = "DEPLOYX_TEST_OLD"

func openDriver(ctx context.Context, t snapshot.Tree) (snapshot.Driver, error) {
	if t.Driver == fallback.Name {
		return fallback.Open(ctx, fallback.Options{Tree: t.Path, State: filepath.Join(t.Store, "layers")})
	}
	return overlay.New(overlay.Options{Tree: t.Path, State: t.Store, Old: os.Getenv(envOld) != ""})
}

func newRigWith(t testing.TB, dir, driver string) *rig {
	testns.Need(t)
	r := &rig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	if err := os.MkdirAll(r.tree, 0o755); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	r.opts = Options{
		State:      snapshot.NewState(state),
		Tree:       snapshot.Tree{Path: r.tree, Driver: driver, Created: time.Now(), Store: ChooseStore(r.tree, state)},
		OpenDriver: openDriver,
		Warn:       r.warn,
		Reader:     []string{os.Args[0], "late-output"},
	}
	if err := r.opts.State.Add(r.opts.Tree); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(r.tree, unix.MNT_DETACH) == nil { //nolint:revive // until nothing is mounted
		}
	})
	r.reopen()
	t.Cleanup(func() {
		if err := r.Session.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) warn(s string) {
	if r.strict {
		r.Error("warning:", s)
	} else {
		r.Log("warning:", s)
	}
}

// newPlainRig is a rig in the plain layout: the tree is a mount of its own.
func newPlainRig(t testing.TB) *rig {
	testns.Need(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "srv", "app")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(tree, tree, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after the rig's own
		bases, _ := filepath.Glob(filepath.Join(dir, "state", "trees", "*", "layers", "base"))
		for _, b := range bases {
			unix.Unmount(b, unix.UMOUNT_NOFOLLOW) //nolint:errcheck // not mounted when the tree is plain
		}
	})
	return newRigIn(t, dir)
}

// onLayouts runs a test in either layout; a warning fails it.
func onLayouts(t *testing.T, f func(t *testing.T, r *rig)) {
	for name, rig := range map[string]func(testing.TB) *rig{"subtree": newRig, "plain": newPlainRig} {
		t.Run(name, func(t *testing.T) {
			r := rig(t)
			r.strict = true
			f(t, r)
		})
	}
}

// reopen opens a second session, as another process would.
func (r *rig) reopen() {
	r.Helper()
	if err := r.open(); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) open() error {
	s, err := Open(context.Background(), r.opts)
	if err == nil {
		r.Session = s
	}
	return err
}

// run runs a command and returns its result and what it printed.
func (r *rig) run(text string) (Result, string) {
	r.Helper()
	var out bytes.Buffer
	res, err := r.Run(context.Background(), Command{Text: text, Stdout: &out, Stderr: &out})
	if err != nil {
		r.Fatalf("%s: %v", text, err)
	}
	return res, out.String()
}

func (r *rig) rollback(id snapshot.ID) Undo {
	r.Helper()
	u, err := r.Rollback(context.Background(), Target{ID: id}, RollbackOptions{})
	if err != nil {
		r.Fatal(err)
	}
	return u
}
