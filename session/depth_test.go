package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/snapshot"
)

// overtaken is a driver whose merges in the background never come to anything.
type overtaken struct {
	*overlay.Driver
	rooms   atomic.Int32 // calls of Room
	waiting atomic.Bool
}

func (o *overtaken) Maintain(context.Context, snapshot.View) error { return nil }

func (o *overtaken) Room(ctx context.Context, v snapshot.View) error {
	o.rooms.Add(1)
	o.waiting.Store(true)
	defer o.waiting.Store(false)
	return o.Driver.Room(ctx, v)
}

// overtakenRig opens the session of a rig anew with such a driver.
func overtakenRig(r *rig) *overtaken {
	o := &overtaken{}
	r.opts.OpenDriver = func(_ context.Context, t snapshot.Tree) (_ snapshot.Driver, err error) {
		o.Driver, err = overlay.New(overlay.Options{Tree: t.Path, State: t.Store})
		return o, err
	}
	r.reopen()
	return o
}

// heavyText makes files, every other time in a new directory, else some in each of
// fifty, and removes a few of what was there.
func heavyText(i, files int) string {
	if i%2 == 0 {
		return fmt.Sprintf("mkdir new%d; touch new%[1]d/{1..%d}; rm -f old1/f%d.{1..50}", i, files, i-3)
	}
	return fmt.Sprintf("mkdir -p old{1..50}; touch old{1..50}/f%d.{1..%d}; rm -f new%d/{1..50}", i, files/50, i-3)
}

// TestDepth: commands that come faster than their layers are merged wait before
// they begin, and no mount ever has more than sixteen layers; what is undone then
// is what it was. Drift and rollbacks take their places too.
func TestDepth(t *testing.T) {
	r := newRig(t)
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	o := overtakenRig(r)
	var ids []snapshot.ID
	want := map[int]treecmp.Picture{0: nil, 7: nil, 20: nil, 28: nil}
	for i := range 30 {
		if _, ok := want[i]; ok {
			want[i] = picture(t, r.tree)
		}
		res, _ := r.run("cd " + r.tree + "; " + heavyText(i, 200))
		ids = append(ids, res.Snapshot.ID)
		if n := testns.MountedLayers(t, r.tree); n > 16 {
			t.Fatalf("command %d: %d layers are mounted", i, n)
		}
		if i%6 == 5 {
			sh(t, r.tree, "echo drift > drift")
		}
	}
	if o.rooms.Load() == 0 {
		t.Error("no command asked for room")
	}
	for _, i := range []int{28, 20, 7, 0} {
		if _, err := r.Rollback(context.Background(), Target{ID: ids[i]}, RollbackOptions{Drift: DriftDrop}); err != nil {
			t.Fatal(err)
		}
		if i > 0 && testns.MountedLayers(t, r.tree) > 16 { // before the first nothing is mounted
			t.Errorf("back before command %d: %d layers are mounted", i, testns.MountedLayers(t, r.tree))
		}
		if d := treecmp.Diff(want[i], picture(t, r.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 {
			t.Errorf("back before command %d:\n%s", i, d)
		}
	}
}

const envDepth = "DEPLOYX_TEST_DEPTH" // DIR POINT N, or DIR to note all points

// depthCommands are so many that the newest have to wait for merges.
const depthCommands = 17

// TestDepthCrashes kills the process at points of the merges that a command waits
// for. Whoever opens the session next finds the tree as it was before that
// command, and merges what is left.
func TestDepthCrashes(t *testing.T) {
	if s := os.Getenv(envDepth); s != "" {
		playDepth(t, strings.Fields(s))
		return
	}
	testns.Need(t)
	model := filepath.Join(t.TempDir(), "plain")
	if err := os.Mkdir(model, 0o755); err != nil {
		t.Fatal(err)
	}
	models := []treecmp.Picture{picture(t, model)}
	for i := range depthCommands + 2 {
		sh(t, model, heavyText(i, 50))
		models = append(models, picture(t, model))
	}
	dir := t.TempDir()
	if err := depthChild(dir); err != nil {
		t.Fatal(err)
	}
	unmountAll(t, filepath.Join(dir, "srv", "app"))
	b, err := os.ReadFile(filepath.Join(dir, "points"))
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Split(strings.TrimSpace(string(b)), "\n")
	var chosen []string
	for _, name := range []string{"overlay.merging", "overlay.merged"} {
		var of []string
		for _, p := range points {
			if strings.HasPrefix(p, name+" ") {
				of = append(of, p)
			}
		}
		if len(of) < 2 {
			t.Fatalf("%d times at %s", len(of), name)
		}
		chosen = append(chosen, of[0], of[len(of)-1])
	}
	for _, p := range chosen {
		t.Run(p, func(t *testing.T) { dieInDepth(t, p, models) })
	}
}

func depthChild(dir string, point ...string) error {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDepthCrashes$", "-test.count=1")
	cmd.Env = append(os.Environ(), envDepth+"="+dir+" "+strings.Join(point, " "))
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if len(point) > 0 && errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return nil
	}
	if err != nil || len(point) > 0 {
		return fmt.Errorf("child at %q: %w\n%s", point, err, out)
	}
	return nil
}

// playDepth is the child: it dies at its point, or notes those of all waits.
func playDepth(t *testing.T, args []string) {
	r := crashRig(t, args[0])
	o := overtakenRig(r)
	notes, err := os.Create(filepath.Join(args[0], "points"))
	if err != nil {
		t.Fatal(err)
	}
	hits := map[string]int{}
	crash.SetHook(func(name string) {
		if !o.waiting.Load() {
			return
		}
		hits[name]++
		fmt.Fprintln(notes, name, hits[name]) //nolint:errcheck // the parent counts them
		if len(args) > 1 && args[1] == name && args[2] == fmt.Sprint(hits[name]) {
			crashtest.Die(name)
		}
	})
	for i := range depthCommands {
		if err := r.try(heavyText(i, 50)); err != nil {
			t.Fatal(err)
		}
	}
}

// showsModel makes the session recover, and compares the tree. Merged layers are
// hard links.
func showsModel(t *testing.T, r *rig, want treecmp.Picture) {
	t.Helper()
	if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	o := crashTimes
	o.AnyNlink = true
	if d := treecmp.Diff(want, picture(t, r.tree), o); len(d) > 0 {
		t.Fatalf("not as a plain directory:\n%s", d)
	}
}

func dieInDepth(t *testing.T, point string, models []treecmp.Picture) {
	dir := t.TempDir()
	if err := depthChild(dir, strings.Fields(point)...); err != nil {
		t.Fatal(err)
	}
	defer unmountAll(t, filepath.Join(dir, "srv", "app"))
	r := crashRig(t, dir)
	overtakenRig(r)
	n := len(historyOf(t, r))
	showsModel(t, r, models[n])
	if n < depthCommands-6 || r.Recovered().Unfinished != "" {
		t.Errorf("%d commands are recorded: %+v", n, r.Recovered())
	}
	for i := n; i < n+2; i++ {
		if err := r.try(heavyText(i, 50)); err != nil {
			t.Fatal(err)
		}
		showsModel(t, r, models[i+1])
		if n := testns.MountedLayers(t, r.tree); n > 16 {
			t.Errorf("%d layers are mounted", n)
		}
	}
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	overtakenRig(r)
	showsModel(t, r, models[n+2])
	if rec := r.Recovered(); rec.Reshown || rec.Unfinished != "" {
		t.Errorf("the second found something to do: %+v", rec)
	}
	if err := r.EmptyTrash(context.Background()); err != nil {
		t.Fatal(err)
	}
	half, err := filepath.Glob(filepath.Join(r.opts.Tree.Store, "layers", "merged", "new.*"))
	if err != nil || len(half) > 0 {
		t.Errorf("half-made merges were left: %v %v", half, err)
	}
	if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	showsModel(t, r, models[0])
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
}
