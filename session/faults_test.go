package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/faults"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/snapshot"
)

const envFaults = "DEPLOYX_TEST_FAULTS" // kind, dir and driver, for the child

var faultKinds = map[string]faults.Calls{"changes": faults.Changes, "reads": faults.Reads}

// TestFaults makes the system calls of each operation fail, one at a time: those that
// change a file system or the mount table with ENOSPC or EIO, those that look at a
// file system with EIO; in a soak all of them, with both. The operation then took
// place, or is reported as an error and left the tree and the record as they were; and
// the next one works.
func TestFaults(t *testing.T) {
	if os.Getenv(envFaults) != "" {
		playFaults(t)
		return
	}
	if testing.Short() {
		t.Skip("takes a minute")
	}
	ways := [][2]unix.Errno{{unix.ENOSPC, unix.EIO}}
	if os.Getenv("DEPLOYX_SOAK") != "" {
		ways = append(ways, [2]unix.Errno{unix.EIO, unix.ENOSPC})
	}
	for _, driver := range []string{overlay.Name, fallback.Name} {
		for _, way := range ways {
			t.Run(fmt.Sprintf("%s %v", driver, way[0]), func(t *testing.T) {
				t.Parallel()
				faultsChild(t, "changes", driver, way)
			})
		}
		t.Run(driver+" reads", func(t *testing.T) {
			t.Parallel()
			faultsChild(t, "reads", driver, [2]unix.Errno{unix.EIO, unix.EIO})
		})
	}
}

func faultsChild(t *testing.T, kind, driver string, way [2]unix.Errno) {
	dir := testns.NewImage(t, testns.ImageOptions{Size: 256 << 20}).Dir // the disk under /tmp may be busy
	defer unmountAll(t, filepath.Join(dir, "srv", "app"))
	n := 0
	s := faults.Supervisor{Calls: faultKinds[kind], Dirs: []string{dir}, At: func(string) unix.Errno { n++; return way[n%2] }}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestFaults$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %s", envFaults, kind, dir, driver))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.Run(cmd); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	t.Logf("%d calls failed\n%s", n, out.String())
	if n < 100 {
		t.Errorf("only %d calls failed", n)
	}
}

// A faultOp is an operation, and what comes before it.
type faultOp struct {
	name    string
	prepare []func(*rig) error
	do      func(*rig) error
	runs    bool // a command: what it did stays when it cannot be recorded
	ends    bool // it may have gone so far that nothing is known of the tree any more
	later   bool // it may have been done, or what comes next does it, if it has failed
	undoes  bool // it undoes the last of prepare, in every way
	seals   bool // the tree is pinned, or was: overlay only
}

var faultOps = []faultOp{
	{name: "first run", prepare: nil, do: faultRun(0), runs: true},
	{name: "run", prepare: []func(*rig) error{faultRun(0)}, do: faultRun(1), runs: true},
	{name: "run over drift", prepare: []func(*rig) error{faultRun(0), faultDrift}, do: faultRun(1), runs: true},
	{name: "rollback", prepare: []func(*rig) error{faultRun(0), faultRun(1)}, do: back(1), undoes: true},
	{name: "rollback that keeps drift", prepare: []func(*rig) error{faultRun(0), faultRun(1), faultDrift}, do: back(1)},
	{name: "rollback of drift", prepare: []func(*rig) error{faultRun(0), faultRun(1), faultDrift}, do: faultBackAll},
	{name: "rollback to base", prepare: []func(*rig) error{faultRun(0), faultRun(1)}, do: faultBackAll},
	{name: "redo", prepare: []func(*rig) error{faultRun(0), faultRun(1), back(1)}, do: redo},
	{name: "expire", prepare: []func(*rig) error{faultRun(0), faultRun(1), faultRun(2), back(1)}, do: faultExpire},
	{name: "expire on a floor", prepare: []func(*rig) error{faultRun(0), faultRun(1)}, do: faultExpire},
	{name: "commit", prepare: []func(*rig) error{faultRun(0), faultRun(1)}, do: commitAll},
	{name: "commit a part", prepare: []func(*rig) error{faultRun(0), faultRun(1), faultRun(2)}, do: commitOldest},
	{name: "commit what others did", prepare: []func(*rig) error{faultRun(0), faultDrift}, do: commitAll},
	{name: "restore", prepare: []func(*rig) error{faultRun(0), faultRun(1), faultBoot}, do: faultRestore, later: true},
	{name: "forget", prepare: []func(*rig) error{faultRun(0), faultRun(1)}, do: forget, ends: true},
	{name: "run, pinned", prepare: []func(*rig) error{faultRun(0), pin, faultDrift}, do: faultRun(1), runs: true, seals: true},
	{name: "rollback in place", prepare: []func(*rig) error{faultRun(0), pin, faultRun(1)}, do: back(1), undoes: true, seals: true},
	{name: "run after the holder has gone", prepare: []func(*rig) error{faultRun(0), pin, faultRun(1), letGo}, do: faultRun(2), runs: true, seals: true},
}

var faultCommands = []string{
	"mkdir -p d/e; echo one > d/f; echo one > d/e/g; echo $$ > /dev/null",
	"rm -rf n; mv d n; echo two >> n/f; rm n/e/g; ln -s f n/l; chmod 600 n/f",
	"echo three > three",
}

// faultRun runs a command that says on stdout that it ran.
func faultRun(n int) func(*rig) error {
	return func(r *rig) error {
		var out bytes.Buffer
		_, err := r.Run(context.Background(), Command{Text: "cd " + r.tree + "; " + faultCommands[n] + "; echo ran", Stdout: &out})
		if err != nil && out.Len() > 0 {
			return ranError{err}
		}
		return err
	}
}

// A ranError is that of a command that did run.
type ranError struct{ error }

func (e ranError) Unwrap() error { return e.error }

func faultDrift(r *rig) error {
	return os.WriteFile(filepath.Join(r.tree, "theirs"), []byte("x"), 0o644)
}

func faultBackAll(r *rig) error {
	_, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{Drift: DriftDrop})
	return err
}

func faultExpire(r *rig) error {
	_, err := r.Expire(context.Background(), 0)
	return err
}

func faultBoot(r *rig) error {
	unmountAll(r.TB.(*testing.T), r.tree) //nolint:forcetypeassert // a test's
	return nil
}

func faultRestore(r *rig) error {
	_, err := r.Restore(context.Background())
	r.showOnly = false
	return err
}

// playFaults is the child.
func playFaults(t *testing.T) {
	var kind, dir, driver string
	if _, err := fmt.Sscan(os.Getenv(envFaults), &kind, &dir, &driver); err != nil {
		t.Fatal(err)
	}
	if err := faults.Install(3, faultKinds[kind]); err != nil {
		t.Fatal(err)
	}
	f := &faulty{rig: killRig(t, dir, driver), kind: kind, ctl: faults.Connect(3)}
	defer letGo(f.rig) //nolint:errcheck // the end of the test
	for _, op := range faultOps {
		if !op.seals || driver == overlay.Name {
			t.Run(op.name, func(t *testing.T) { f.each(t, op) })
		}
	}
	if err := f.Session.Close(); err != nil {
		t.Error(err)
	}
}

type faulty struct {
	*rig
	kind string
	ctl  faults.Control
	was  treecmp.Picture // before the last of what op's prepare did
}

// each fails one call after the other of op, until it has no more.
func (f *faulty) each(t *testing.T, op faultOp) {
	f.rig.TB = t
	f.prepare(op)
	if err := op.do(f.rig); err != nil {
		t.Fatal(err)
	}
	f.anew()
	after := readFiles(t, f.tree)
	step, n := faultStep(f.kind, op)
	for ; ; n += step {
		f.prepare(op)
		before, head := picture(t, f.tree), f.onDisk()
		if err := f.ctl.Arm(n); err != nil {
			t.Fatal(err)
		}
		err := op.do(f.rig)
		calls, chosen, e := f.ctl.Disarm()
		if e != nil {
			t.Fatal(e)
		}
		f.anew()
		if chosen == "" {
			if t.Logf("%d calls", calls); err != nil {
				t.Fatalf("nothing failed: %v", err)
			}
			return
		}
		if f.check(op, before, after, head, err, n); t.Failed() {
			t.Fatalf("call %d of %d, %s: %v", n, calls, chosen, err)
		}
	}
}

// anew makes a tree known again that was forgotten.
func (f *faulty) anew() {
	f.Helper()
	if !f.forgotten {
		return
	}
	if err := f.Session.Close(); err != nil {
		f.Fatal(err)
	}
	if err := os.MkdirAll(f.opts.Tree.Store, 0o755); err != nil {
		f.Fatal(err)
	}
	f.reopen()
}

// faultStep tells which calls fail: all in a soak, else every third that changes
// something and every 20th that looks, half as many where a round takes twice as
// long, others every day.
func faultStep(kind string, op faultOp) (step, first int) {
	step = map[string]int{"changes": 3, "reads": 20}[kind]
	if op.seals {
		step *= 2
	}
	if os.Getenv("DEPLOYX_SOAK") != "" {
		step = 1
	}
	return step, 1 + time.Now().YearDay()%step
}

// prepare goes back to base, or the floor, and from there to where op begins.
func (f *faulty) prepare(op faultOp) {
	f.Helper()
	if err := letGo(f.rig); err != nil {
		f.Fatal(err)
	}
	if len(historyOf(f.TB.(*testing.T), f.rig)) > 0 {
		if err := faultBackAll(f.rig); err != nil {
			f.Fatal(err)
		}
	}
	if names, err := filepath.Glob(filepath.Join(f.opts.Tree.Store, "record", "*.json")); err != nil || len(names) > 20 {
		if err := errors.Join(err, faultExpire(f.rig)); err != nil { // else each time has more calls than the one before
			f.Fatal(err)
		}
	}
	for i, do := range op.prepare {
		if i == len(op.prepare)-1 {
			f.was = picture(f, f.tree)
		}
		if err := do(f.rig); err != nil {
			f.Fatal(err)
		}
	}
}

// onDisk is the head as another process reads it.
func (f *faulty) onDisk() snapshot.Head {
	f.Helper()
	r, err := snapshot.OpenRecord(filepath.Join(f.opts.Tree.Store, "record"))
	if err != nil {
		f.Fatal(err)
	}
	return r.Head()
}

// check holds the tree and the record against what was reported, now and after
// the next operation, which another process does every second time.
func (f *faulty) check(op faultOp, before treecmp.Picture, after files, head snapshot.Head, err error, n int) {
	f.Helper()
	now := f.onDisk()
	took := err == nil || op.runs && isRan(err) || snapshot.IsUnconfirmed(err)
	if !op.later || took {
		f.shows(op, before, after, took)
	}
	if !took && now.Snapshot != head.Snapshot && !f.isDrift(now.Snapshot) && !(op.ends && now.Snapshot == "") {
		f.Errorf("the head has moved from %s to %s, and an error was reported", head.Snapshot, now.Snapshot)
	}
	f.noStrays()
	if n%2 == 0 {
		if err := f.Session.Close(); err != nil {
			f.Errorf("close: %v", err)
		}
		f.reopen()
	}
	if err := f.try("X=1"); err != nil {
		f.Errorf("the next command: %v", err)
	}
	f.shows(op, before, after, took || op.later)
	if op.seals {
		f.sealed(op, before, took, n)
	}
	if rec := f.second(); rec.Reshown || rec.Unfinished != "" {
		f.Errorf("something was left to do: %+v", rec)
	}
}

func isRan(err error) bool {
	_, ok := err.(ranError) //nolint:errorlint // nothing wraps it
	return ok
}

func (f *faulty) isDrift(id snapshot.ID) bool {
	r, err := snapshot.OpenRecord(filepath.Join(f.opts.Tree.Store, "record"))
	if err != nil {
		f.Fatal(err)
	}
	e, err := r.Snapshot(id)
	return err == nil && e.Kind == snapshot.KindDrift
}

func (f *faulty) shows(op faultOp, before treecmp.Picture, after files, took bool) {
	f.Helper()
	got := picture(f, f.tree)
	switch {
	case took && op.undoes:
		if d := treecmp.Diff(f.was, got, treecmp.Options{AnyNlink: true}); len(d) > 0 {
			f.Errorf("%s is said to be done:\n%s", op.name, d)
		}
	case took:
		if d := unlike(after, readFiles(f, f.tree)); len(d) > 0 {
			f.Errorf("%s is said to be done:\n%s", op.name, strings.Join(d, "\n"))
		}
	default:
		if d := treecmp.Diff(before, got, treecmp.Options{AnyNlink: true}); len(d) > 0 {
			f.Errorf("%s is said to have failed:\n%s", op.name, d)
		}
	}
}

// sealed holds what has been copied out of a pinned tree against what it showed: the
// command that ran in it is undone and done again, in place or by swaps.
func (f *faulty) sealed(op faultOp, before treecmp.Picture, took bool, n int) {
	f.Helper()
	all, want := picture(f, f.tree), before
	switch {
	case op.undoes && !took:
		want = f.was
	case op.undoes || !took:
		return // what is left was there before the tree was pinned
	}
	if n&2 == 0 {
		if err := letGo(f.rig); err != nil {
			f.Fatal(err)
		}
	}
	if err := f.turn(back(2), want); err != nil { // X=1 too
		f.Errorf("undo what was sealed: %v", err)
	}
	if err := f.turn(redo, all); err != nil {
		f.Errorf("do again what was sealed: %v", err)
	}
}

// turn does something and compares the whole tree.
func (f *faulty) turn(do func(*rig) error, want treecmp.Picture) error {
	f.Helper()
	if err := do(f.rig); err != nil {
		return err
	}
	if d := treecmp.Diff(want, picture(f, f.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 {
		return fmt.Errorf("unlike:\n%s", d)
	}
	return nil
}

// noStrays: nothing half-written lies in the record.
func (f *faulty) noStrays() {
	f.Helper()
	tmp, err := filepath.Glob(filepath.Join(f.opts.Tree.Store, "record", "*.tmp"))
	if err != nil || len(tmp) > 0 {
		f.Errorf("left behind: %v %v", tmp, err)
	}
}

// second is what another process would find to do.
func (f *faulty) second() Recovery {
	f.Helper()
	s, err := Open(context.Background(), f.opts)
	if err != nil {
		f.Fatal(err)
	}
	if err := s.exclusively(context.Background(), func() error { return nil }); err != nil {
		f.Error(err)
	}
	r := s.Recovered()
	s.upkeep.end(upkeepGrace)
	if err := s.drv.Close(); err != nil {
		f.Error(err)
	}
	return r
}
