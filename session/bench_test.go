package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"deployx/shell"
	"deployx/snapshot"
)

// BenchmarkRun measures a command that changes one file, with all that the
// session does around it, beside the same command in the shell alone.
func BenchmarkRun(b *testing.B) {
	for _, files := range []int{100, 100_000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) { benchRun(b, files, false) })
	}
	b.Run("fast", func(b *testing.B) { benchRun(b, 100, true) })
	b.Run("shell", benchShell)
}

func benchRun(b *testing.B, files int, fast bool) {
	r := newRig(b)
	fill(b, r.tree, files)
	r.o.Fast = fast
	var took []time.Duration
	r.run(":")
	for b.Loop() {
		start := time.Now()
		res, _ := r.run("echo x > changed")
		took = append(took, time.Since(start))
		if len(took)%100 == 0 {
			b.StopTimer()
			if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
				b.Fatal(err)
			}
			r.run(":")
			b.StartTimer()
		}
		_ = res
	}
	percentiles(b, took)
}

func benchShell(b *testing.B) {
	sh, err := shell.Start(context.Background(), shell.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer sh.Close() //nolint:errcheck // a benchmark
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := sh.Run(context.Background(), shell.Command{Text: "echo x > changed"}); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	percentiles(b, took)
}

func percentiles(b *testing.B, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), "p99-µs")
}

// fill makes files in directories of a hundred.
func fill(b testing.TB, tree string, n int) {
	for i := range n {
		dir := filepath.Join(tree, fmt.Sprint(i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRollback measures a rollback until the tree shows it.
func BenchmarkRollback(b *testing.B) {
	r := newRig(b)
	var took []time.Duration
	for b.Loop() {
		b.StopTimer()
		res, _ := r.run("for i in {1..1000}; do echo $i > f$i; done")
		b.StartTimer()
		took = append(took, r.rollback(res.Snapshot.ID).Duration)
	}
	percentiles(b, took)
	_ = snapshot.Version
}
