package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/snapshot"
)

// A commitStep of a script; deadly ones are those whose points are died at.
type commitStep struct {
	name   string
	do     func(*rig) error
	to     int // commands that the tree shows afterwards
	deadly bool
}

// commitScript commits a part, works on, commits all, and forgets the tree, with
// what is moved and what is not. A step that only commits leaves the tree as it
// is.
var commitScript = []commitStep{
	{"run 1", runNth(1), 1, false},
	{"commit new files", commitAll, 1, true},
	{"run 2", runNth(2), 2, false},
	{"run 3", runNth(3), 3, false},
	{"commit what was moved, a part", commitOldest, 3, true},
	{"rollback", back(1), 2, false},
	{"redo", redo, 3, false},
	{"commit the rest", commitAll, 3, true},
	{"run 4", runNth(3), 3, false},
	{"commit what changed nothing more", commitOldest, 3, false},
	{"forget", forget, 3, true},
}

// pinnedScript does it while a process holds the tree.
var pinnedScript = []commitStep{
	{"nothing", func(r *rig) error { return r.try("X=1") }, 0, false},
	{"pin", pin, 0, false},
	{"run 1", runNth(1), 1, false},
	{"commit under a holder", commitAll, 1, true},
	{"run 2", runNth(2), 2, false},
	{"run 3", runNth(3), 3, false},
	{"commit more", commitAll, 3, true},
	{"let go", letGo, 3, false},
	{"commit the rest", commitAll, 3, true},
	{"forget", forget, 3, false},
}

// attributeCommands change attributes alone, also of a file with other names, and put a
// file in the place of a directory.
var attributeCommands = []string{
	"mkdir d sub; echo 1 > d/a; ln d/a d/b; ln d/a c; echo f > f; echo 1 > sub/k; ln -s f l",
	"chmod 600 d/a; chmod 640 f; setfattr -n user.x -v y f; rm -r sub; echo now a file > sub; rm l; mkdir l",
	"echo 3 > three; rm c",
	"echo 4 > four; mv three d",
}

// attributeScript commits these, and lets what it has not committed expire.
var attributeScript = []commitStep{
	{"base", func(r *rig) error { return r.tryOutside(r.tree, attributeCommands[0]) }, 1, false},
	{"run 2", attributes(2), 2, false},
	{"commit attributes", commitAll, 2, true},
	{"run 3", attributes(3), 3, false},
	{"run 4", attributes(4), 4, false},
	{"expire", faultExpire, 4, true},
	{"commit the floor", commitAll, 4, false},
}

func attributes(n int) func(*rig) error {
	return func(r *rig) error { return r.try(attributeCommands[n-1]) }
}

// Names beside the drivers': the overlay driver, and another script.
const (
	pinned     = "pinned"
	attributed = "attributes"
)

func commitScriptOf(driver string) []commitStep {
	switch driver {
	case pinned:
		return pinnedScript
	case attributed:
		return attributeScript
	}
	return commitScript
}

func commitAll(r *rig) error {
	_, err := r.Commit(context.Background(), CommitOptions{})
	return err
}

func commitOldest(r *rig) error {
	var o CommitOptions
	for e, err := range r.rec.Chain(r.rec.Head().Snapshot) {
		if err != nil {
			return err
		}
		o.Through = e.ID
	}
	_, err := r.Commit(context.Background(), o)
	return err
}

func forget(r *rig) error {
	_, err := r.ForgetTree(context.Background(), ForgetOptions{Commit: true})
	return err
}

// ofCommit are the points that a commit or a forget has to itself, and the moves
// of its record.
var ofCommit = regexp.MustCompile(`commit|forget|anew|folded|record\.moved|overlay\.merging|overlay\.frozen|fallback\.log\.synced`)

const (
	envCommitDir    = "DEPLOYX_TEST_COMMIT_DIR"
	envCommitPoint  = "DEPLOYX_TEST_COMMIT_POINT" // "" notes all points
	envCommitDriver = "DEPLOYX_TEST_COMMIT_DRIVER"
)

// TestCommitCrashes kills the process at the named points of commit and forget,
// on both drivers. Whoever opens the session next finds the tree as it was, and
// the commit finished or not begun; the one after that finds nothing to do; work
// goes on; and when all is committed the plain directory is the model's.
func TestCommitCrashes(t *testing.T) {
	if os.Getenv(envCommitDir) != "" {
		playCommit(t)
		return
	}
	testns.Need(t)
	for _, driver := range []string{overlay.Name, pinned, attributed, fallback.Name} {
		t.Run(driver, func(t *testing.T) {
			models := crashModels(t, crashCommands[:3])
			if driver == attributed {
				models = crashModels(t, attributeCommands)
			}
			points, died := commitPoints(t, driver), 0
			for _, p := range points {
				t.Run(p, func(t *testing.T) {
					if dieInCommit(t, driver, p, models) {
						died++
					}
				})
			}
			if died < len(points)*9/10 {
				t.Errorf("only %d of %d died", died, len(points))
			}
		})
	}
}

// commitPoints plays the script without dying and chooses, of each point in each
// deadly step, the first, the last and the middle hit.
func commitPoints(t *testing.T, driver string) (chosen []string) {
	t.Helper()
	dir := t.TempDir()
	err := commitChild(dir, driver, "")
	letGo(&rig{TB: t, tree: filepath.Join(dir, "srv", "app")}) //nolint:errcheck // if it has failed
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "points"))
	if err != nil {
		t.Fatal(err)
	}
	hits := map[string][]string{} // by step and name
	var order []string
	for _, line := range strings.Fields(string(b)) { // STEP:NAME:N
		at := line[:strings.LastIndexByte(line, ':')]
		_, name, _ := strings.Cut(at, ":")
		if !ofCommit.MatchString(name) {
			continue // TestCrashes dies there
		}
		if hits[at] == nil {
			order = append(order, at)
		}
		hits[at] = append(hits[at], line)
	}
	for _, at := range order {
		all := hits[at]
		chosen = append(chosen, all[0])
		if strings.Contains(at, ":overlay.commit") {
			chosen = append(chosen, all[len(all)/2])
		}
		chosen = append(chosen, all[len(all)-1])
	}
	if chosen = slices.Compact(chosen); len(chosen) < 15 {
		t.Fatalf("only %d points: %v", len(chosen), chosen)
	}
	return chosen
}

func commitChild(dir, driver, point string) error {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestCommitCrashes$", "-test.count=1")
	cmd.Env = append(os.Environ(), envCommitDir+"="+dir, envCommitDriver+"="+driver, envCommitPoint+"="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if point != "" && errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return nil
	}
	if err != nil {
		return fmt.Errorf("child at %q: %w\n%s", point, err, out)
	}
	if point != "" {
		return errLived
	}
	return nil
}

var errLived = errors.New("the child lived: it did not come to that point as often")

func playCommit(t *testing.T) {
	dir, target := os.Getenv(envCommitDir), os.Getenv(envCommitPoint)
	notes, err := os.OpenFile(filepath.Join(dir, "points"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	r := commitRig(t, dir, os.Getenv(envCommitDriver))
	script := commitScriptOf(os.Getenv(envCommitDriver))
	var mu sync.Mutex
	hits, step := map[string]int{}, 0
	crash.SetHook(func(name string) {
		mu.Lock() // the driver may pass points in the background
		defer mu.Unlock()
		hits[name]++
		point := fmt.Sprintf("%d:%s:%d", step, name, hits[name])
		if point == target {
			crashtest.Die(name)
		}
		if script[step].deadly {
			fmt.Fprintln(notes, point) //nolint:errcheck // the parent counts them
		}
	})
	for i, s := range script {
		mu.Lock()
		step = i
		clear(hits)
		mu.Unlock()
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

// commitRig is a rig in a given directory; nothing of it is cleaned up.
func commitRig(t *testing.T, dir, driver string) *rig {
	t.Helper()
	r := &rig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	if err := os.MkdirAll(r.tree, 0o755); err != nil {
		t.Fatal(err)
	}
	if driver == pinned || driver == attributed {
		driver = overlay.Name
	}
	state := filepath.Join(dir, "state")
	r.opts = Options{
		State:      snapshot.NewState(state),
		Tree:       snapshot.Tree{Path: r.tree, Driver: driver, Store: filepath.Join(state, "trees", "app")},
		OpenDriver: openDriver,
		Warn:       func(s string) { t.Error("warning:", s) },
	}
	if err := r.opts.State.Add(r.opts.Tree); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	return r
}

func dieInCommit(t *testing.T, driver, point string, models []treecmp.Picture) (died bool) {
	dir := t.TempDir()
	err := commitChild(dir, driver, point)
	if died = !errors.Is(err, errLived); !died {
		t.Log(err) // what is looked at in the background, or twice for its times, is not the same each time
	} else if err != nil {
		t.Fatal(err)
	}
	defer unmountAll(t, filepath.Join(dir, "srv", "app"))
	b, err := os.ReadFile(filepath.Join(dir, "step"))
	if err != nil {
		t.Fatal(err)
	}
	var i int
	fmt.Sscan(string(b), &i) //nolint:errcheck // 0 is checked like any other
	script := commitScriptOf(driver)
	want := models[script[i].to]
	r := &rig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	defer letGo(r) //nolint:errcheck // the end of the test
	// The kill may have left the tree mounted, or half committed after a reboot:
	// both must be got over.
	if i%2 == 1 {
		if err := letGo(r); err != nil {
			t.Fatal(err)
		}
		unmountAll(t, r.tree)
	}
	r = commitRig(t, dir, driver)
	for n := range 2 {
		if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
			t.Fatal(err)
		}
		sameModel(t, fmt.Sprintf("opened %d times after a kill in %q", n+1, script[i].name), want, r.tree)
		if h := r.rec.Head(); h.Committing != "" || h.Replaced != "" {
			t.Errorf("not finished: %+v", h)
		}
		if rec := r.Recovered(); n == 1 && (rec.Reshown || rec.Unfinished != "" || rec.Committing != "") {
			t.Errorf("the second found something to do: %+v", rec)
		}
		if err := r.Session.Close(); err != nil {
			t.Fatal(err)
		}
		r.reopen()
	}
	if err := letGo(r); err != nil {
		t.Fatal(err)
	}
	goOnCommitting(t, r, want)
	return died
}

// goOnCommitting works on after a crash, commits all, and forgets the tree.
func goOnCommitting(t *testing.T, r *rig, want treecmp.Picture) {
	t.Helper()
	if err := r.try("echo more > more; mv n m"); err != nil {
		t.Fatal(err)
	}
	if err := back(1)(r); err != nil {
		t.Fatal(err)
	}
	sameModel(t, "after one more and its rollback", want, r.tree)
	if err := commitAll(r); err != nil {
		t.Fatal(err)
	}
	if mounted(t, r.tree) {
		t.Error("still mounted")
	}
	sameModel(t, "committed", want, r.tree)
	if err := forget(r); err != nil {
		t.Fatal(err)
	}
	sameModel(t, "forgotten", want, r.tree)
	if err := r.Session.Close(); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(r.opts.State.Dir()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("left behind:", left, err)
	}
}

func sameModel(t *testing.T, what string, want treecmp.Picture, tree string) {
	t.Helper()
	got := picture(t, tree)
	o := crashTimes
	o.AnyNlink = true
	if d := treecmp.Diff(want, got, o); len(d) > 0 {
		t.Fatalf("%s:\n%s", what, d)
	}
	if leaks := got.OverlayXattrs(); len(leaks) > 0 {
		t.Fatalf("%s: attributes of overlayfs: %q", what, leaks)
	}
}
