package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/snapshot"
)

// keepScript is played by a process that is killed at every point of its
// undoing steps. want is what the tree is after a step, as a script for a plain
// directory.
var keepScript = []struct {
	name string
	do   func(*rig) error
	want string
	undo bool
}{
	{"first", func(r *rig) error { return r.try("echo 1 > app; echo u > up; mkdir d e; echo f > d/f") }, keepBase, false},
	{"second", func(r *rig) error { return r.try("echo 2 > app; mkdir new; echo n > new/n") }, keepBase + keepSecond, false},
	{"others", func(r *rig) error { return r.tryOutside(r.tree, keepOthers) }, keepBase + keepSecond + keepOthers, false},
	{"third", func(r *rig) error { return r.try("echo 3 > app") }, keepBase + keepSecond + keepOthers + keepThird, false},
	{"others again", func(r *rig) error { return r.tryOutside(r.tree, "rm e/o") }, keepBase + keepSecond + keepOthers + keepThird + "rm e/o\n", false},
	{"rollback", back(2), keepBase + keepOthers + "rm e/o\n", true},
	{"others at last", func(r *rig) error { return r.tryOutside(r.tree, "echo l > last") }, keepBase + keepOthers + "rm e/o\necho l > last\n", false},
	{"redo", redo, keepBase + keepSecond + keepOthers + keepThird + "rm e/o\necho l > last\n", true},
	{"rollback one", back(1), keepBase + keepSecond + keepOthers + "rm e/o\necho l > last\n", true},
}

const (
	keepBase   = "echo 1 > app; echo u > up; mkdir d e; echo f > d/f\n"
	keepSecond = "echo 2 > app; mkdir new; echo n > new/n\n"
	keepOthers = "mv d D; echo x >> up; chmod 700 e; echo o > e/o\n"
	keepThird  = "echo 3 > app\n"
)

const envKeepDriver = "DEPLOYX_TEST_KEEP_DRIVER"

// TestKeepCrashes kills the process at every point of rollbacks and redos that
// keep what others wrote. Whoever comes next finds the tree as it was before or
// after, with others' work in it; the one after that finds nothing to do; and
// the same undo, done then, leads where it should.
func TestKeepCrashes(t *testing.T) {
	if os.Getenv(envKeepDriver) != "" {
		playKeep(t)
		return
	}
	if testing.Short() {
		t.Skip("takes a minute")
	}
	for _, driver := range []string{overlay.Name, fallback.Name} {
		t.Run(driver, func(t *testing.T) {
			dir := t.TempDir()
			if err := keepChild(t, dir, driver, ""); err != nil {
				t.Fatal(err)
			}
			unmountAll(t, filepath.Join(dir, "srv", "app"))
			b, err := os.ReadFile(filepath.Join(dir, "points"))
			if err != nil {
				t.Fatal(err)
			}
			points := strings.Fields(string(b))
			for _, must := range []string{"session.drift", "session.carried"} {
				if !strings.Contains(string(b), must) {
					t.Errorf("the point %s was not passed", must)
				}
			}
			if len(points) < 30 {
				t.Fatalf("only %d points", len(points))
			}
			for _, p := range someOf(points) {
				t.Run(p, func(t *testing.T) { dieKeeping(t, driver, p) })
			}
		})
	}
}

func keepChild(t *testing.T, dir, driver, point string) error {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKeepCrashes$", "-test.count=1")
	cmd.Env = append(os.Environ(), envCrashDir+"="+dir, envCrashPoint+"="+point, envKeepDriver+"="+driver)
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

// playKeep is the child: it notes every point of the undoing steps, or dies at
// one.
func playKeep(t *testing.T) {
	dir, target := os.Getenv(envCrashDir), os.Getenv(envCrashPoint)
	notes, err := os.OpenFile(filepath.Join(dir, "points"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	r := keepRig(t, dir, os.Getenv(envKeepDriver))
	hits, undoing := map[string]int{}, false
	var mu sync.Mutex // a driver may pass points in several goroutines
	crash.SetHook(func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if !undoing {
			return
		}
		name = anyID.ReplaceAllString(name, "ID")
		hits[name]++
		point := fmt.Sprintf("%s:%d", name, hits[name])
		if target == "" {
			io.WriteString(notes, point+"\n") //nolint:errcheck // the parent counts them
		} else if point == target {
			crashtest.Die(name)
		}
	})
	for i, s := range keepScript {
		mu.Lock()
		undoing = s.undo
		mu.Unlock()
		if err := os.WriteFile(filepath.Join(dir, "step"), fmt.Appendf(nil, "%d", i), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.do(r); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	mu.Lock()
	undoing = false
	mu.Unlock()
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
}

// anyID is an id in the name of a point, which is another one in every run.
var anyID = regexp.MustCompile(`[0-9a-f]{8}-[-0-9a-f]{27}`)

// someOf takes the first pass of each point, and of the session's own the last
// one too, unless there is time for all.
func someOf(points []string) (some []string) {
	last := map[string]string{}
	for _, p := range points {
		name, _, _ := strings.Cut(p, ":")
		last[name] = p
	}
	for _, p := range points {
		name, n, _ := strings.Cut(p, ":")
		if n == "1" || last[name] == p && strings.HasPrefix(p, "session.") || os.Getenv("DEPLOYX_SOAK") != "" {
			some = append(some, p)
		}
	}
	return some
}

// keepRig is a rig in a given directory; nothing of it is cleaned up.
func keepRig(t *testing.T, dir, driver string) *rig {
	t.Helper()
	r := &rig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	state := filepath.Join(dir, "state")
	r.opts = Options{
		State:      snapshot.NewState(state),
		Tree:       snapshot.Tree{Path: r.tree, Driver: driver, Store: filepath.Join(state, "trees", "app")},
		OpenDriver: openDriver,
	}
	if err := errors.Join(os.MkdirAll(r.tree, 0o755), r.opts.State.Add(r.opts.Tree)); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	return r
}

func dieKeeping(t *testing.T, driver, point string) {
	dir := t.TempDir()
	defer unmountAll(t, filepath.Join(dir, "srv", "app"))
	if err := keepChild(t, dir, driver, point); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "step"))
	if err != nil {
		t.Fatal(err)
	}
	var i int
	if _, err := fmt.Sscan(string(b), &i); err != nil {
		t.Fatal(err)
	}
	r := keepRig(t, dir, driver)
	if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	done := r.isTree(keepScript[i].want)
	if !done && !r.isTree(keepScript[i-1].want) {
		t.Fatalf("killed in %q: the tree is neither what it was nor what it should be", keepScript[i].name)
	}
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if rec := r.Recovered(); rec.Reshown || rec.Unfinished != "" {
		t.Errorf("the second found something to do: %+v", rec)
	}
	if !done {
		if err := keepScript[i].do(r); err != nil {
			t.Fatalf("%s, after the crash: %v", keepScript[i].name, err)
		}
	}
	r.wantTree(keepScript[i].want)
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
}

// isTree tells whether the tree is what a script makes of an empty directory.
func (r *rig) isTree(script string) bool {
	r.Helper()
	t := r.TB.(*testing.T)
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), r.tryOutside(dir, script)); err != nil {
		r.Fatal(err)
	}
	return len(treecmp.Diff(picture(t, dir), picture(t, r.tree), anyTimes)) == 0
}
