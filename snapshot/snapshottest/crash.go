package snapshottest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
)

// Crash is Options.Crash with the zero Options.
func Crash(t *testing.T, open Open) { Options{}.Crash(t, open) }

// envCrash tells a child where to work and where to die.
const envCrash = "DEPLOYX_TEST_CRASH"

// ordeal is what a child of Crash is told.
type ordeal struct {
	Place Place
	Log   string // directory for what it notes
	Point string // where it kills itself; "" to live and note every point
	Hit   int    // at which time there, from 1
}

// Crash kills a process that works with the driver, by SIGKILL, at every point
// that deployx/internal/crash names on its way, inside loops too. It demands
// that a driver opened afterwards shows, as its caller chooses, the view before
// or the one that was on its way, exactly; that another one opened after that
// finds nothing left to do; and that work goes on from there.
//
// It calls itself in a child process: nothing may come before it in a test.
func (o Options) Crash(t *testing.T, open Open) {
	if s := os.Getenv(envCrash); s != "" {
		var do ordeal
		if err := json.Unmarshal([]byte(s), &do); err != nil {
			t.Fatal(err)
		}
		do.play(t, open)
		return
	}
	o = o.placed(t)
	hits := o.hits(t)
	if len(hits) == 0 {
		t.Fatal("the driver has no crash points")
	}
	name := t.Name()
	for i, h := range hits {
		for _, way := range []string{"forward", "back"}[:o.shorter(2)] {
			t.Run(fmt.Sprintf("%d %s %d %s", i, h.Point, h.Hit, way), func(t *testing.T) {
				o.die(t, open, name, h, way == "forward")
			})
		}
	}
}

// hits plays the script without dying, and chooses for each point, in each call
// of the driver, the first hit, one in the middle and the last; emulated, the one in
// the middle alone.
func (o Options) hits(t *testing.T) []ordeal {
	t.Helper()
	do := o.ordeal(t)
	if err := do.child(t, t.Name()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(do.Log, "points"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	count, calls := map[string]int{}, map[string][]ordeal{}
	var order []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text() // number of the call, name of the point
		_, point, _ := strings.Cut(line, " ")
		count[point]++
		if calls[line] == nil {
			order = append(order, line)
		}
		calls[line] = append(calls[line], ordeal{Point: point, Hit: count[point]})
	}
	var chosen []ordeal
	for _, line := range order {
		all := calls[line]
		if testns.Emulated() {
			all = all[len(all)/2:][:1]
		}
		chosen = append(chosen, all[0], all[len(all)/2], all[len(all)-1])
	}
	return slices.Compact(chosen)
}

// ordeal makes the directories and the base for one child.
func (o Options) ordeal(t *testing.T) ordeal {
	t.Helper()
	do := ordeal{Place: o.Place(t), Log: t.TempDir()}
	base := newSide(do.Place.Tree)
	for _, op := range aTree() {
		if err := base.apply(op); err != nil {
			t.Fatal(err)
		}
	}
	return do
}

// child runs the test of that name again in a process of its own.
func (do ordeal) child(t *testing.T, name string) error {
	t.Helper()
	b, err := json.Marshal(do)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.count=1", "-test.run="+pattern(name))
	cmd.Env = append(os.Environ(), envCrash+"="+string(b))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("child: %w\n%s", err, out)
	}
	return nil
}

// pattern matches the test of that name and nothing else.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

func wasKilled(err error) bool {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return false
	}
	status, ok := exit.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// die lets a child die at a point and looks at what is left.
func (o Options) die(t *testing.T, open Open, name string, at ordeal, forward bool) {
	do := o.ordeal(t)
	do.Point, do.Hit = at.Point, at.Hit
	r := &rig{
		t: t, o: o, open: open, at: do.Place, states: map[string]*state{}, behind: &state{},
		tree: newSide(do.Place.Tree), plain: newSide(do.Place.Plain),
	}
	t.Cleanup(r.cleanUp)
	err := do.child(t, name)
	if err == nil {
		t.Logf("the child lived: %q was not reached a %dth time", at.Point, at.Hit)
	} else if !wasKilled(err) {
		t.Fatal(err)
	}
	last := lastMark(t, do.Log)
	t.Logf("died at %q, hit %d, in %s", at.Point, at.Hit, last)
	goal := last.From
	if forward || last.Done {
		goal = last.To
	}
	if sealed := slices.Contains(last.To.View.Layers, last.From.View.Open); sealed && !last.Done && !forward && !r.showsOpen(goal) {
		goal = last.To
	}
	r.survive(do.Log, goal)
}

// showsOpen tells whether the view of goal can be shown, although another one
// was about to be shown above its open layer. A driver may say no: then it has
// sealed the layer. It may not show something else.
func (r *rig) showsOpen(goal point) bool {
	r.t.Helper()
	r.d = r.open(r.t, r.at.Tree, r.at.State)
	_, err := r.d.Show(r.ctx(), goal.View)
	if err != nil {
		r.t.Logf("the open layer is sealed: %v", err)
	}
	r.must("Close", r.d.Close())
	return err == nil
}

// survive opens the driver twice, demands the point goal each time, and goes
// on working.
func (r *rig) survive(log string, goal point) {
	r.t.Helper()
	want := loadPicture(r.t, log, goal.Tree)
	for range 2 {
		r.d = r.open(r.t, r.at.Tree, r.at.State)
		r.settle(goal)
		r.same("after a crash", want)
		if goal.View.Open != "" {
			dirty, err := r.d.Dirty(r.ctx(), goal.View)
			r.must("Dirty", err)
			if dirty != goal.Dirty {
				r.t.Fatalf("Dirty after a crash: want %v, got %v", goal.Dirty, dirty)
			}
			r.view = goal.View
			r.showAgain()
		}
		r.must("Close", r.d.Close())
	}
	r.d = r.open(r.t, r.at.Tree, r.at.State)
	if goal.View.Open != "" {
		r.goOn(goal, loadPicture(r.t, log, goal.Below))
	}
	r.hide()
	r.same("base after a crash", loadPicture(r.t, log, 0))
}

// settle shows the view of goal, or hides.
func (r *rig) settle(goal point) {
	r.t.Helper()
	if goal.View.Open == "" {
		r.must("Hide", r.d.Hide(r.ctx()))
	} else {
		_, err := r.d.Show(r.ctx(), goal.View)
		r.must("Show", err)
	}
	r.wantShown(goal.View.Open)
}

// goOn changes something, pushes, and goes back to below, the tree without the
// open layer.
func (r *rig) goOn(goal point, below treecmp.Picture) {
	r.t.Helper()
	for _, op := range []Op{write("after", "the crash"), chmod("d", 0o700)} {
		if err := r.tree.apply(op); err != nil && op.Path == "after" {
			r.t.Fatalf("%v: %v", op, err)
		}
	}
	dirty, err := r.d.Dirty(r.ctx(), goal.View)
	r.must("Dirty", err)
	if !dirty {
		r.t.Fatal("Dirty is false after a change")
	}
	now := r.picture(r.tree.root)
	r.show(append(slices.Clone(goal.View.Layers), goal.View.Open), now)
	r.show(goal.View.Layers, below)
}
