package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/snapshot"
)

// A step is one operation of the crash script, as the session does it and as a
// plain directory does.
type crashStep struct {
	name string
	do   func(*rig) error
	// to is the number of commands whose effect the tree shows afterwards, on
	// the line of history that the script is on.
	to int
}

// commands change much and in every way; each works on what those before left.
var crashCommands = []string{
	"mkdir -p d/e; echo 1 > d/f; echo 1 > d/e/g",
	"mv d n; echo 2 >> n/f; rm n/e/g; ln -s f n/l",
	"rm -r n; mkdir n; chmod 700 .; echo 3 > n/new",
	"echo 4 > n/four; touch -d @4 n/new",
}

var crashScript = []crashStep{
	{"run 1", runNth(1), 1},
	{"run 2", runNth(2), 2},
	{"run 3", runNth(3), 3},
	{"rollback 2", back(2), 1},
	{"redo", redo, 3},
	{"rollback 1", back(1), 2},
	{"run 4", runNth(3), 3},
	{"nothing", func(r *rig) error { return r.try("X=1") }, 3},
	{"rollback all", func(r *rig) error {
		_, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{})
		return err
	}, 0},
}

func (r *rig) try(text string) error {
	_, err := r.Run(context.Background(), Command{Text: "cd " + r.tree + "; " + text})
	return err
}

func runNth(n int) func(*rig) error { return func(r *rig) error { return r.try(crashCommands[n-1]) } }

func back(n int) func(*rig) error {
	return func(r *rig) error {
		_, err := r.Rollback(context.Background(), Target{Last: n}, RollbackOptions{})
		return err
	}
}

func redo(r *rig) error {
	_, err := r.Redo(context.Background(), 1, RollbackOptions{})
	return err
}

const (
	envCrashDir   = "DEPLOYX_TEST_CRASH_DIR"
	envCrashPoint = "DEPLOYX_TEST_CRASH_POINT" // "" notes all points
)

// TestCrashes kills the process at every named point of every step. Whoever
// opens the session next must find the tree as it was before that step or after
// it, and a history that says so; the one after that must find nothing to do.
func TestCrashes(t *testing.T) {
	if os.Getenv(envCrashDir) != "" {
		playCrash(t)
		return
	}
	if testing.Short() {
		t.Skip("takes a minute")
	}
	models := crashModels(t, crashCommands[:3])
	dir := t.TempDir()
	if err := crashChild(t, dir, ""); err != nil {
		t.Fatal(err)
	}
	unmountAll(t, filepath.Join(dir, "srv", "app"))
	b, err := os.ReadFile(filepath.Join(dir, "points"))
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(b))
	if len(points) < 100 {
		t.Fatalf("only %d points", len(points))
	}
	for _, p := range points {
		t.Run(p, func(t *testing.T) { dieAt(t, p, models) })
	}
}

// crashModels are pictures of a plain directory after each number of commands.
func crashModels(t *testing.T, commands []string) []treecmp.Picture {
	dir := filepath.Join(t.TempDir(), "plain")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	models := []treecmp.Picture{picture(t, dir)}
	for _, c := range commands {
		cmd := exec.Command("bash", "-c", c)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		models = append(models, picture(t, dir))
	}
	return models
}

func crashChild(t *testing.T, dir, point string) error {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCrashes$", "-test.count=1")
	cmd.Env = append(os.Environ(), envCrashDir+"="+dir, envCrashPoint+"="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if point != "" && errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return nil
	}
	if err != nil || point != "" {
		return fmt.Errorf("child at %q: %w\n%s", point, err, out)
	}
	return nil
}

// playCrash is the child: it plays the script and dies at the n-th hit of its
// point ("NAME:N"), or notes every hit.
func playCrash(t *testing.T) {
	dir, target := os.Getenv(envCrashDir), os.Getenv(envCrashPoint)
	notes, err := os.OpenFile(filepath.Join(dir, "points"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	r := crashRig(t, dir)
	hits := map[string]int{}
	crash.SetHook(func(name string) {
		hits[name]++
		point := fmt.Sprintf("%s:%d", name, hits[name])
		if target == "" {
			io.WriteString(notes, point+"\n") //nolint:errcheck // the parent counts them
		} else if point == target {
			crashtest.Die(name)
		}
	})
	for i, s := range crashScript {
		if err := os.WriteFile(filepath.Join(dir, "step"), fmt.Appendf(nil, "%d", i), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.do(r); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
}

// crashRig is a rig in a given directory; nothing of it is cleaned up.
func crashRig(t *testing.T, dir string) *rig {
	t.Helper()
	r := &rig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	if err := os.MkdirAll(r.tree, 0o755); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	r.opts = Options{
		State: snapshot.NewState(state),
		Tree:  snapshot.Tree{Path: r.tree, Driver: overlay.Name, Store: filepath.Join(state, "trees", "app")},
		OpenDriver: func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
			return overlay.New(overlay.Options{Tree: t.Path, State: t.Store})
		},
	}
	if err := r.opts.State.Add(r.opts.Tree); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	return r
}

func dieAt(t *testing.T, point string, models []treecmp.Picture) {
	dir := t.TempDir()
	if err := crashChild(t, dir, point); err != nil {
		t.Fatal(err)
	}
	defer unmountAll(t, filepath.Join(dir, "srv", "app"))
	b, err := os.ReadFile(filepath.Join(dir, "step"))
	if errors.Is(err, os.ErrNotExist) {
		b = []byte("0") // killed before the first step
	} else if err != nil {
		t.Fatal(err)
	}
	var i int
	fmt.Sscan(string(b), &i) //nolint:errcheck // 0 is checked like any other
	before := 0
	if i > 0 {
		before = crashScript[i-1].to
	}
	r := crashRig(t, dir)
	n := checkCrashed(t, r, models, before, crashScript[i].to)
	first := r.Recovered()
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	checkCrashed(t, r, models, n, n)
	if rec := r.Recovered(); rec.Reshown || rec.Unfinished != "" {
		t.Errorf("the second found something to do: %+v, after %+v", rec, first)
	}
	goOn(t, r, models, n)
}

// checkCrashed makes the session recover, and finds which of two states the
// tree shows: that of a or of b commands.
func checkCrashed(t *testing.T, r *rig, models []treecmp.Picture, a, b int) int {
	t.Helper()
	if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	got := picture(t, r.tree)
	for _, n := range []int{a, b} {
		if len(treecmp.Diff(models[n], got, crashTimes)) == 0 {
			return n
		}
	}
	t.Fatalf("neither %d commands:\n%s\nnor %d:\n%s", a, treecmp.Diff(models[a], got, crashTimes), b, treecmp.Diff(models[b], got, crashTimes))
	return 0
}

// crashTimes leaves the times out: model and tree took them at different
// moments.
var crashTimes = treecmp.Options{WantTime: func(int64) int64 { return 0 }, GotTime: func(int64) int64 { return 0 }}

// goOn works on after a crash: what the record lists can be undone to base.
func goOn(t *testing.T, r *rig, models []treecmp.Picture, n int) {
	t.Helper()
	if err := r.try("echo more > more"); err != nil {
		t.Fatal(err)
	}
	if err := back(1)(r); err != nil {
		t.Fatal(err)
	}
	if d := treecmp.Diff(models[n], picture(t, r.tree), crashTimes); len(d) > 0 {
		t.Errorf("after one more and its rollback:\n%s", d)
	}
	if len(historyOf(t, r)) > 0 {
		if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if d := treecmp.Diff(models[0], picture(t, r.tree), crashTimes); len(d) > 0 {
		t.Errorf("back at base:\n%s", d)
	}
	if err := r.Session.Close(); err != nil {
		t.Error(err)
	}
	if mounted(t, r.tree) {
		t.Error("still mounted")
	}
}

func historyOf(t *testing.T, r *rig) (list []snapshot.Snapshot) {
	t.Helper()
	for s, err := range r.rec.Chain(r.rec.Head().Snapshot) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, s)
	}
	return list
}

func unmountAll(t *testing.T, tree string) {
	t.Helper()
	for unix.Unmount(tree, unix.MNT_DETACH) == nil { //nolint:revive // until nothing is mounted
	}
}
