package session

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"deployx/internal/testns"
)

// BenchmarkCommit commits a command that made 100,000 files, and 100,000 whose
// modes it changed, beside `cp -al` of as many in the same run, on ext4 in memory.
// The flush that a commit ends with is in its time, and a flush is in that of cp
// too.
func BenchmarkCommit(b *testing.B) {
	dirs, each := 1000, 100
	img := testns.ImageOptions{Size: 3 << 30, Inodes: 800_000}
	if testing.Short() {
		dirs, img = 20, testns.ImageOptions{Size: 256 << 20}
	}
	for _, change := range []string{"cp -a %s/. new", "cp -a %s/. new; chmod -R o-r old"} {
		b.Run(change, func(b *testing.B) {
			var commit, link time.Duration
			for range b.N {
				dir := testns.NewImage(b, img).Dir
				src := filepath.Join(dir, "src")
				for i := range dirs {
					sub := filepath.Join(src, fmt.Sprint(i))
					if err := os.MkdirAll(sub, 0o755); err != nil {
						b.Fatal(err)
					}
					for j := range each {
						if err := os.WriteFile(filepath.Join(sub, fmt.Sprint(j)), []byte("some bytes\n"), 0o644); err != nil {
							b.Fatal(err)
						}
					}
				}
				r := newRigIn(b, dir)
				sh(b, dir, "cp -a src srv/app/old; sync -f .")
				if res, out := r.run("cd " + r.tree + "; mkdir new; " + fmt.Sprintf(change, src)); res.Snapshot.ExitCode != 0 {
					b.Fatal(out)
				}
				start := time.Now()
				sh(b, dir, "cp -al src linked; sync -f .")
				link += time.Since(start)
				start = time.Now()
				c, err := r.Commit(context.Background(), CommitOptions{})
				commit += time.Since(start)
				if err != nil || !c.Plain {
					b.Fatal(c, err)
				}
			}
			b.ReportMetric(float64(commit)/float64(link), "×cp-al")
			b.ReportMetric(commit.Seconds()/float64(b.N), "commit-s")
			b.ReportMetric(link.Seconds()/float64(b.N), "cp-al-s")
		})
	}
}

func sh(t testing.TB, dir, cmd string) {
	t.Helper()
	c := exec.Command("bash", "-ec", cmd)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}
