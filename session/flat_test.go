package session

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// cost is what one command took of this process, in things that do not depend
// on the machine (bytes allocated and read), in time of its CPUs, which depends
// little on what else the machine does, and in time.
type cost struct {
	allocated, read float64
	cpu, took       time.Duration
}

// quarter takes the lower quartile of each by itself: merges beside a command, and
// buffers that a collection of garbage took, only add to what the command costs.
func quarter(all []cost) cost {
	pick := func(f func(cost) float64) float64 {
		var v []float64
		for _, c := range all {
			v = append(v, f(c))
		}
		slices.Sort(v)
		return v[len(v)/4]
	}
	return cost{
		pick(func(c cost) float64 { return c.allocated }), pick(func(c cost) float64 { return c.read }),
		time.Duration(pick(func(c cost) float64 { return float64(c.cpu) })), time.Duration(pick(func(c cost) float64 { return float64(c.took) })),
	}
}

// readBytes is what this process has read so far, files and pipes: rchar of
// proc_pid_io(5).
func readBytes(t testing.TB) (n float64) {
	b, err := os.ReadFile("/proc/self/io")
	if err == nil {
		_, err = fmt.Sscanf(string(b), "rchar: %g", &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// step runs command number i of a history that touches a few files of many and
// removes some.
func step(r *rig, i int) snapshot.ID {
	res, _ := r.run(fmt.Sprintf("mkdir -p d%d; echo %d > d%d/f%d; rm -f d%d/f%d", i%7, i, i%7, i%50, (i+3)%7, i%50))
	return res.Snapshot.ID
}

func measure(r *rig, f func()) cost {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	read, cpu, start := readBytes(r), cpuTime(r), time.Now()
	f()
	c := cost{took: time.Since(start), cpu: cpuTime(r) - cpu, read: readBytes(r) - read}
	runtime.ReadMemStats(&after)
	c.allocated = float64(after.TotalAlloc - before.TotalAlloc)
	return c
}

// cpuTime is what this process has used of its CPUs, in user mode and in the
// kernel.
func cpuTime(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap is what is in use once all that can be has been given up.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// youngSteps are as many as it takes until as many units are mounted as ever are: each
// takes some of a command's time.
const youngSteps = 180

// TestFlat: a command late in a long history costs what one early in a history
// does. Both are measured in turns, in one run, and only ratios count: of bytes
// allocated and read closely, of CPU time loosely, and in the long version of
// time.
func TestFlat(t *testing.T) {
	n, soak := 1000, os.Getenv("DEPLOYX_SOAK") != ""
	switch {
	case soak:
		n = 10_000
	case testing.Short():
		n = 200
	}
	young, old := flatRig(t), flatRig(t)
	for i := range youngSteps {
		step(young, i)
	}
	before := heap()
	marks := grow(old, n)
	old.upkeep.end(time.Minute)
	if each := (heap() - before) / int64(n); each > 1024 {
		t.Errorf("%d bytes of memory for each snapshot, more than 1024", each)
	} else {
		t.Logf("%d bytes of memory for each snapshot", each)
	}
	compareCosts(t, young, old, n, soak)
	compareOpening(t, young, old, n)
	reach(old, marks)
}

// compareOpening compares the first command of a session: what a process has to
// read before it. It reads the list of layers and the names of the runs, so that
// it grows with history, but by little more than an id a layer.
func compareOpening(t *testing.T, young, old *rig, n int) {
	var a, b []cost
	for i := range 10 {
		a = append(a, measure(young, func() { young.again(); step(young, i) }))
		b = append(b, measure(old, func() { old.again(); step(old, i) }))
	}
	x, y := quarter(a), quarter(b)
	t.Logf("a session and its first command: %v, CPU %v, %.0f read; at %d: %v, CPU %v, %.0f read", x.took, x.cpu, x.read, n, y.took, y.cpu, y.read)
	if y.read-x.read > float64(n)*120 || y.allocated-x.allocated > float64(n)*700 {
		t.Errorf("%.0f bytes more read and %.0f more allocated after %d commands", y.read-x.read, y.allocated-x.allocated, n)
	}
}

// flatAttempts is how often a busy machine may spoil the times.
const flatAttempts = 3

func compareCosts(t *testing.T, young, old *rig, n int, soak bool) {
	for try, i := 1, youngSteps; ; try++ {
		var a, b []cost
		for range 60 {
			a = append(a, measure(young, func() { step(young, i) }))
			b = append(b, measure(old, func() { step(old, i) }))
			i++
		}
		x, y := quarter(a), quarter(b)
		t.Logf("at %d: %v, %.0f bytes allocated, %.0f read; at %d: %v, %.0f, %.0f", i, x.took, x.allocated, x.read, n+i, y.took, y.allocated, y.read)
		cpu, took := float64(y.cpu)/float64(x.cpu), float64(y.took)/float64(x.took)
		t.Logf("time %.3f, CPU time %.3f, allocated %.3f, read %.3f times", took, cpu, y.allocated/x.allocated, y.read/x.read)
		// One copy of the stack's ids is taken for each command: 20 bytes a layer. Each unit
		// that is mounted takes some, and is read of by name: some more or less.
		// An entry is some 450 bytes.
		if most := x.allocated + 48<<10 + 25*float64(n); y.allocated > most || y.read > x.read+500 {
			t.Error("a command does more the longer the history is")
		}
		if cpu <= 1.2 && (!soak || took <= 1.2) {
			return
		}
		if try == flatAttempts {
			t.Error("a command takes more time the longer the history is")
			return
		}
	}
}

func flatRig(t *testing.T) *rig {
	img := testns.NewImage(t, testns.ImageOptions{Size: 4 << 30, Inodes: 400_000})
	r := newRigIn(t, img.Dir)
	r.opts.Fast = true
	r.again()
	return r
}

// again closes the session and opens another, as the next process does.
func (r *rig) again() {
	if err := r.Session.Close(); err != nil {
		r.Fatal(err)
	}
	r.reopen()
}

// mark is a snapshot to go back to, and what the tree was then.
type mark struct {
	id   snapshot.ID
	want treecmp.Picture
}

// grow runs n commands and keeps pictures of what the first and the middle one
// found.
func grow(r *rig, n int) (marks []mark) {
	start := time.Now()
	for i := range n {
		if i == 0 || i == n/2 {
			marks = append(marks, mark{want: picture(r, r.tree)})
		}
		id := step(r, i)
		if i == 0 || i == n/2 {
			marks[len(marks)-1].id = id
		}
		if (i+1)%1000 == 0 {
			r.Logf("%d commands: %v", i+1, time.Since(start))
		}
	}
	return marks
}

// reach rolls back to the middle and to the first, and tells what opening,
// listing and looking take on the way.
func reach(r *rig, marks []mark) {
	ctx := context.Background()
	tell := func(what string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			r.Fatalf("%s: %v", what, err)
		}
		r.Logf("%s: %v", what, time.Since(start))
	}
	if err := r.Session.Close(); err != nil {
		r.Fatal(err)
	}
	tell("open the state", func() error {
		r.reopen()
		_, err := r.rec.View(r.rec.Head())
		return err
	})
	tell("the newest 20", func() error {
		n := 0
		for _, err := range r.rec.Chain(r.rec.Head().Snapshot) {
			if n++; err != nil || n == 20 {
				return err
			}
		}
		return nil
	})
	for _, what := range []string{"status", "status again"} {
		tell(what, func() error {
			st, err := r.Status(ctx)
			r.Logf("%+v", st)
			return err
		})
	}
	for _, m := range slices.Backward(marks) {
		tell("roll back", func() error {
			u, err := r.Rollback(ctx, Target{ID: m.id}, RollbackOptions{})
			r.Logf("%d commands undone", len(u.Dropped))
			return err
		})
		if d := treecmp.Diff(m.want, picture(r, r.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 {
			r.Errorf("rollback:\n%s", d)
		}
	}
}
