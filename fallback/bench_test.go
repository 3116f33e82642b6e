package fallback_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// envFiles is the number of files in the tree of the benchmarks; envDir is a
// directory on the disk that they shall use, instead of an ext4 in memory.
const (
	envFiles = "DEPLOYX_BENCH_FILES"
	envDir   = "DEPLOYX_BENCH_DIR"
)

func benchFiles(b *testing.B) int {
	b.Helper()
	n, err := strconv.Atoi(os.Getenv(envFiles))
	if err != nil {
		n = 100_000
	}
	return n
}

// benchTree makes n files in directories of 100, of 200 bytes to 16 KiB with a
// few larger ones, about what a node_modules directory holds.
func benchTree(b *testing.B, dir string, n int) string {
	b.Helper()
	tree := filepath.Join(dir, "tree")
	buf := make([]byte, 256<<10)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for i := range n {
		dir := filepath.Join(tree, fmt.Sprintf("d%d/e%d", i/1000, i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		size := 200 + i*7919%16_000
		if i%500 == 0 {
			size = len(buf)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d.js", i)), buf[:size], 0o644); err != nil {
			b.Fatal(err)
		}
	}
	unix.Sync()
	return tree
}

// timed runs f and says how long it took.
func timed(f func()) time.Duration {
	start := time.Now()
	f()
	return time.Since(start)
}

func command(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// find is the walk that a user would do instead: every column is read.
func find(b *testing.B, tree string) {
	b.Helper()
	out, err := os.Create(filepath.Join(b.TempDir(), "found"))
	must(b, err)
	cmd := exec.Command("find", tree, "-printf", `%p %i %T@ %C@ %s %m %U %G %n %l\n`)
	cmd.Stdout = out
	must(b, cmd.Run())
	must(b, out.Close())
}

// BenchmarkDriver measures in one run what the driver does and what users
// would do instead, in turns so that both see the same machine.
func BenchmarkDriver(b *testing.B) {
	n := benchFiles(b)
	dir := os.Getenv(envDir)
	if dir == "" {
		dir = testns.NewImage(b, testns.ImageOptions{Size: 6 << 30}).Dir
	}
	dir, err := os.MkdirTemp(dir, "bench")
	must(b, err)
	defer os.RemoveAll(dir) //nolint:errcheck // goes with the image
	tree := benchTree(b, dir, n)
	b.Run("baseline", func(b *testing.B) { benchBaseline(b, dir, tree) })
	b.Run("unchanged", func(b *testing.B) { benchUnchanged(b, dir, tree) })
	b.Run("restore", func(b *testing.B) { benchRestore(b, dir, tree, n) })
}

func benchBaseline(b *testing.B, dir, tree string) {
	var ours, cp, cpSync time.Duration
	for range b.N {
		cp += timed(func() { command(b, "cp", "-a", tree, filepath.Join(dir, "copy")) })
		cpSync += timed(unix.Sync)
		must(b, os.RemoveAll(filepath.Join(dir, "copy")))
		unix.Sync()
		d := openBench(b, tree, filepath.Join(dir, "state"))
		ours += timed(func() { showBench(b, d, snapshot.View{Open: snapshot.NewLayerID()}) })
		must(b, d.Close())
		must(b, os.RemoveAll(filepath.Join(dir, "state")))
		unix.Sync()
	}
	report(b, "ours", ours)
	report(b, "cp-a", cp)
	report(b, "cp-a+sync", cp+cpSync)
	b.ReportMetric(ours.Seconds()/cp.Seconds(), "ours/cp-a")
}

func report(b *testing.B, name string, d time.Duration) {
	b.Helper()
	b.ReportMetric(float64(d.Microseconds())/1000/float64(b.N), name+"-ms")
}

func openBench(b *testing.B, tree, state string) *fallback.Driver {
	b.Helper()
	d, err := fallback.Open(b.Context(), fallback.Options{Tree: tree, State: state})
	must(b, err)
	return d
}

func showBench(b *testing.B, d *fallback.Driver, v snapshot.View) {
	b.Helper()
	_, err := d.Show(b.Context(), v)
	must(b, err)
}

// benchUnchanged measures the snapshot of a tree in which nothing changed: in a
// process that has the index, and in one that first reads it.
func benchUnchanged(b *testing.B, dir, tree string) {
	state := filepath.Join(dir, b.Name()[len("BenchmarkDriver/"):])
	d := openBench(b, tree, state)
	v := snapshot.View{Open: snapshot.NewLayerID()}
	showBench(b, d, v)
	dirty(b, d, v)
	var ours, fresh, walk time.Duration
	b.ResetTimer()
	for range b.N {
		walk += timed(func() { find(b, tree) })
		ours += timed(func() {
			if dirty(b, d, v) {
				b.Fatal("dirty")
			}
		})
		must(b, d.Close())
		fresh += timed(func() {
			d = openBench(b, tree, state)
			dirty(b, d, v)
		})
	}
	must(b, d.Close())
	report(b, "ours", ours)
	report(b, "open+ours", fresh)
	report(b, "find", walk)
	b.ReportMetric(ours.Seconds()/walk.Seconds(), "ours/find")
	b.ReportMetric(fresh.Seconds()/walk.Seconds(), "open+ours/find")
}

// benchRestore changes 1,000 files and rolls that back, which includes the
// scan for what changed since.
func benchRestore(b *testing.B, dir, tree string, n int) {
	d := openBench(b, tree, filepath.Join(dir, b.Name()[len("BenchmarkDriver/"):]))
	v := snapshot.View{Open: snapshot.NewLayerID()}
	showBench(b, d, v)
	var show, whole, walk, scan time.Duration
	b.ResetTimer()
	for range b.N {
		for i := range 1000 {
			k := i * n / 1000
			path := filepath.Join(tree, fmt.Sprintf("d%d/e%d/file-%d.js", k/1000, k/100, k))
			must(b, os.WriteFile(path, []byte("changed"), 0o644))
		}
		unix.Sync()
		if !dirty(b, d, v) {
			b.Fatal("not dirty")
		}
		walk += timed(func() { find(b, tree) })
		next := snapshot.View{Open: snapshot.NewLayerID()}
		s := timed(func() { dirty(b, d, v) })
		r := timed(func() { showBench(b, d, next) })
		scan, show, whole = scan+s, show+r, whole+s+r
		v = next
	}
	must(b, d.Close())
	report(b, "scan", scan)
	report(b, "show", show)
	report(b, "find", walk)
	b.ReportMetric(show.Seconds()/walk.Seconds(), "show/find")
	b.ReportMetric(whole.Seconds()/walk.Seconds(), "scan+show/find")
}
