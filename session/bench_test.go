package session

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"deployx/internal/testns"
	"deployx/shell"
)

// image is a directory on an ext4 of its own, in memory: what is measured there
// is not the disk.
func image(b testing.TB, inodes int) string {
	b.Helper()
	testns.Need(b)
	return testns.NewImage(b, testns.ImageOptions{Type: "ext4", Size: 4 << 30, Inodes: inodes}).Dir
}

// BenchmarkRun measures a command that changes one file, with all that the
// session does around it (until the next one could begin), beside the same
// command in the shell alone, and one durable replacement of a file.
func BenchmarkRun(b *testing.B) {
	b.Run("disk", func(b *testing.B) { benchRun(b, b.TempDir(), 100) })
	b.Run("disk/flush", benchFlush)
	b.Run("memory/files=100", func(b *testing.B) { benchRun(b, image(b, 1_200_000), 100) })
	many := 1_000_000
	if testing.Short() {
		many = 10_000
	}
	b.Run(fmt.Sprintf("memory/files=%d", many), func(b *testing.B) { benchRun(b, image(b, 1_200_000), many) })
	b.Run("shell", benchShell)
}

func benchRun(b *testing.B, dir string, files int) {
	r := newRigIn(b, dir)
	fill(b, r.tree, files)
	r.run(":")
	var whole, told, bash, beside []time.Duration
	for b.Loop() {
		start := time.Now()
		res, err := r.Run(context.Background(), Command{Text: "echo x > changed", Done: func(Result) { told = append(told, time.Since(start)) }})
		if err != nil {
			b.Fatal(err)
		}
		whole = append(whole, time.Since(start))
		bash = append(bash, res.Snapshot.Duration)
		beside = append(beside, whole[len(whole)-1]-res.Snapshot.Duration)
	}
	percentiles(b, "bash-", bash)
	percentiles(b, "beside-bash-", beside)
	percentiles(b, "", whole)
	percentiles(b, "told-", told)
}

// benchFlush is one file replaced durably: write, fsync, rename, fsync of the
// directory.
func benchFlush(b *testing.B) {
	dir := b.TempDir()
	d, err := os.Open(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close() //nolint:errcheck // read only
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		f, err := os.Create(filepath.Join(dir, "tmp"))
		if err != nil {
			b.Fatal(err)
		}
		fmt.Fprintln(f, start)                                           //nolint:errcheck // a benchmark
		f.Sync()                                                         //nolint:errcheck // a benchmark
		f.Close()                                                        //nolint:errcheck // a benchmark
		os.Rename(filepath.Join(dir, "tmp"), filepath.Join(dir, "name")) //nolint:errcheck // a benchmark
		d.Sync()                                                         //nolint:errcheck // a benchmark
		took = append(took, time.Since(start))
	}
	percentiles(b, "", took)
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
	percentiles(b, "", took)
}

func percentiles(b *testing.B, prefix string, d []time.Duration) {
	slices.Sort(d)
	b.ReportMetric(float64(d[len(d)/2].Microseconds()), prefix+"p50-µs")
	b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), prefix+"p99-µs")
}

// fill makes files in directories of a thousand.
func fill(b testing.TB, tree string, n int) {
	for i := range n {
		dir := filepath.Join(tree, fmt.Sprint(i/1000))
		if i%1000 == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRollback measures rollbacks until the tree shows them: of one
// command, of one that changed 10 GB, and of fifty that changed 100,000 files.
func BenchmarkRollback(b *testing.B) {
	for _, c := range []struct {
		name, text string
		commands   int
	}{
		{"one", "echo x > changed", 1},
		{"10GB", "fallocate -l 10G big", 1},
		{"50commands-100000files", "mkdir d$RANDOM$RANDOM; cd d$RANDOM$RANDOM 2>/dev/null || cd $(ls -td */ | head -1); touch $(seq 2000); cd ..", 50},
	} {
		b.Run(c.name, func(b *testing.B) {
			if testing.Short() {
				c.commands = min(c.commands, 5)
			}
			r := newRig(b)
			r.run("echo base > base")
			for range c.commands {
				r.run(c.text)
			}
			var took []time.Duration
			for b.Loop() {
				u, err := r.Rollback(context.Background(), Target{Last: c.commands}, RollbackOptions{})
				if err != nil {
					b.Fatal(err)
				}
				took = append(took, u.Duration)
				if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
					b.Fatal(err)
				}
			}
			percentiles(b, "shown-", took)
		})
	}
}
