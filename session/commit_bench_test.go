package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

// BenchmarkCommit commits a command that made 100,000 files, 100,000 whose modes it
// changed, and 100,000 to which it appended, beside `cp -al` of as many in the same run, on ext4 in memory.
// The flush that a commit ends with is in its time, and a flush is in that of cp
// too. The floor is what as many changes of modes take that look at either side
// first, a loop of five system calls for each file; a flush is in it too.
func BenchmarkCommit(b *testing.B) {
	dirs, each := 1000, 100
	img := testns.ImageOptions{Size: 3 << 30, Inodes: 800_000}
	if testing.Short() {
		dirs, img = 20, testns.ImageOptions{Size: 256 << 20}
	}
	for name, change := range map[string]string{"made": "mkdir new; cp -a %s/. new", "modes": "chmod -R o-r old; : %s", "append": "for f in old/*/*; do echo x >>$f; done; : %s"} {
		b.Run(name, func(b *testing.B) {
			var commit, link, floor, floorCPU, commitCPU, linkCPU time.Duration
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
				if res, out := r.run("cd " + r.tree + "; " + fmt.Sprintf(change, src)); res.Snapshot.ExitCode != 0 {
					b.Fatal(out)
				}
				start, cpu := time.Now(), childrenCPU(b)
				sh(b, dir, "cp -al src linked; sync -f .")
				link += time.Since(start)
				linkCPU += childrenCPU(b) - cpu
				if name == "modes" {
					sh(b, dir, "cp -a src touched; sync -f .")
					start = time.Now()
					cpu := cpuTime(b)
					chmodAll(b, src, filepath.Join(dir, "touched"), dirs, each)
					sh(b, dir, "sync -f .")
					floor += time.Since(start)
					floorCPU += cpuTime(b) - cpu
				}
				start, cpu = time.Now(), cpuTime(b)
				c, err := r.Commit(context.Background(), CommitOptions{})
				commit += time.Since(start)
				commitCPU += cpuTime(b) - cpu
				if err != nil || !c.Plain {
					b.Fatal(c, err)
				}
			}
			b.ReportMetric(float64(commit)/float64(link), "×cp-al")
			b.ReportMetric(float64(commitCPU)/float64(linkCPU), "×cp-al-cpu") // on a machine that does much else
			if floor > 0 {
				b.ReportMetric(float64(floor)/float64(link), "floor×cp-al")
				b.ReportMetric(float64(floorCPU)/float64(linkCPU), "floor×cp-al-cpu")
			}
			b.ReportMetric(commit.Seconds()/float64(b.N), "commit-s")
			b.ReportMetric(link.Seconds()/float64(b.N), "cp-al-s")
		})
	}
}

// childrenCPU is what processes that have ended used of the CPUs.
func childrenCPU(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_CHILDREN, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// chmodAll changes modes in to where from has them otherwise.
func chmodAll(b *testing.B, from, to string, dirs, each int) {
	b.Helper()
	buf := make([]byte, 512)
	for i := range dirs {
		x, errx := os.Open(filepath.Join(from, fmt.Sprint(i)))
		y, erry := os.Open(filepath.Join(to, fmt.Sprint(i)))
		if err := errors.Join(errx, erry); err != nil {
			b.Fatal(err)
		}
		for j := range each {
			name := fmt.Sprint(j)
			var s, t unix.Stat_t
			_, e1 := unix.Llistxattr(filepath.Join(x.Name(), name), buf)
			_, e2 := unix.Llistxattr(filepath.Join(y.Name(), name), buf)
			err := errors.Join(e1, e2, unix.Fstatat(int(x.Fd()), name, &s, unix.AT_SYMLINK_NOFOLLOW), unix.Fstatat(int(y.Fd()), name, &t, unix.AT_SYMLINK_NOFOLLOW),
				unix.Fchmodat(int(y.Fd()), name, t.Mode&0o7773, 0))
			if err != nil {
				b.Fatal(err)
			}
		}
		x.Close() //nolint:errcheck // read only
		y.Close() //nolint:errcheck // read only
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
