package session

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkSealed is a command in a tree that is pinned, beside one that is not,
// on the disk and on an ext4 in memory. The copy of the thousand files is beside
// what cp -a and a flush of the filesystem take for the same, just after.
func BenchmarkSealed(b *testing.B) {
	for _, on := range []struct {
		name string
		dir  func(b *testing.B) string
	}{
		{"disk", func(b *testing.B) string { return b.TempDir() }},
		{"memory", func(b *testing.B) string { return image(b, 200_000) }},
	} {
		for _, c := range []struct {
			name    string
			pinned  bool
			touched int // files of 10 kB that others write before each command
			text    string
		}{
			{"unpinned", false, 0, "true"},
			{"pinned", true, 0, "true"},
			{"pinned_one_file", true, 0, "echo x >> f"},
			{"pinned_1000_files", true, 1000, "true"},
		} {
			b.Run(on.name+"/"+c.name, func(b *testing.B) {
				r := newRigIn(b, on.dir(b))
				r.run("cd $DEPLOYX_TREE; echo > f; mkdir d")
				if c.pinned {
					hold(b, r.tree)
				}
				var floor, cpu, floorCPU time.Duration
				for i := 0; b.Loop(); i++ {
					b.StopTimer()
					touch(b, filepath.Join(r.tree, "d"), c.touched, byte(i))
					before := cpuTime(b)
					b.StartTimer()
					r.run(c.text)
					b.StopTimer()
					cpu += cpuTime(b) - before
					if c.touched > 0 {
						wall, used := copyAll(b, r.tree, c.touched, byte(i))
						floor, floorCPU = floor+wall, floorCPU+used
					}
					b.StartTimer()
				}
				b.ReportMetric(float64(cpu.Microseconds())/1e3/float64(b.N), "cpu-ms/op")
				if c.touched > 0 {
					b.ReportMetric(float64(b.Elapsed())/float64(floor), "x-cp-and-sync")
					b.ReportMetric(float64(cpu)/float64(floorCPU), "x-cpu-of-cp")
				}
			})
		}
	}
}

// touch writes files of 10 kB anew.
func touch(b testing.TB, dir string, files int, what byte) {
	data := make([]byte, 10<<10)
	data[0] = what
	for f := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(f)), data, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// copyAll measures cp -a of as many files just written, and the flush of the
// filesystem that makes them last.
func copyAll(b testing.TB, tree string, files int, what byte) (wall, cpu time.Duration) {
	b.Helper()
	dir := filepath.Join(filepath.Dir(filepath.Dir(tree)), "floor")
	from := filepath.Join(dir, "from")
	if err := os.MkdirAll(from, 0o755); err != nil {
		b.Fatal(err)
	}
	touch(b, from, files, what)
	to := filepath.Join(dir, fmt.Sprint(what))
	start, before := time.Now(), childTime(b)
	if out, err := exec.Command("sh", "-c", `cp -a "$0" "$1" && sync -f "$1"`, from, to).CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	return time.Since(start), childTime(b) - before
}

// childTime is what children that this process waited for have used of its CPUs.
func childTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestSealedCost: a command under a pin takes no more for each small file that others
// changed than a few times what cp -a takes for it, on an ext4 in memory, and allocates
// little. CPU time depends little on what else the machine does, and of several rounds
// the cheapest counts. Before files were opened once and read and written by descriptor
// these were five times as much, and 48 kB.
func TestSealedCost(t *testing.T) {
	const files = 1000
	times, allocated := 3.0, 12_000.0
	if raced() { // its own cost, and what is on the stack else
		times, allocated = 8, 30_000
	}
	r := newRigIn(t, image(t, 200_000))
	r.run("cd $DEPLOYX_TREE; mkdir d")
	hold(t, r.tree)
	least, bytes := math.Inf(1), math.Inf(1)
	for i := range 6 {
		touch(t, filepath.Join(r.tree, "d"), files, byte(i))
		c := measure(r, func() { r.run("true") })
		_, floor := copyAll(t, r.tree, files, byte(i))
		t.Logf("%.2f times, %.0f bytes allocated a file", float64(c.cpu)/float64(floor), c.allocated/files)
		if i > 0 { // the first finds all of them new
			least, bytes = min(least, float64(c.cpu)/float64(floor)), min(bytes, c.allocated/files)
		}
	}
	if least > times {
		t.Errorf("%.2f times the CPU time of cp -a, more than %g", least, times)
	}
	if bytes > allocated {
		t.Errorf("%.0f bytes allocated a file, more than %g", bytes, allocated)
	}
}

// TestSealedFlat: a hundred commands under a pin that each change one file: the last
// ones cost what the first ones do.
func TestSealedFlat(t *testing.T) {
	for try := 1; !sealedFlat(t); try++ { // a busy machine may spoil the CPU time
		if try == flatAttempts {
			t.Errorf("the last of a hundred commands cost more than 1.5 times the first in each of %d tries", try)
			break
		}
	}
}

func sealedFlat(t *testing.T) bool {
	r := newRigIn(t, image(t, 200_000))
	r.run("cd $DEPLOYX_TREE; mkdir d; for i in $(seq 120); do echo > d/$i; done")
	defer hold(t, r.tree).end()
	var wall, cpu, allocated []float64
	for i := range 120 {
		start := time.Now()
		c := measure(r, func() { r.run(fmt.Sprintf("echo x >> d/%d", i+1)) })
		wall = append(wall, time.Since(start).Seconds())
		cpu, allocated = append(cpu, c.cpu.Seconds()), append(allocated, c.allocated)
	}
	grown := func(what string, of []float64) float64 { // the last twenty to those after the first twenty
		early, late := middle(of[20:40]), middle(of[100:])
		t.Logf("%s: %.3g and %.3g, %.2f times", what, early, late, late/early)
		return late / early
	}
	grown("time", wall) // depends on who else works
	return max(grown("CPU time", cpu), grown("bytes allocated", allocated)) <= 1.5
}

func middle(of []float64) float64 {
	of = slices.Clone(of)
	slices.Sort(of)
	return of[len(of)/2]
}

// raced tells whether the test was built with the race detector.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}
