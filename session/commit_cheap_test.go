package session

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

// TestCommitCheap bounds the time in the kernel that a commit takes by what `cp -al` of
// as many files takes, in turns, at the lower quartile of each, for what else goes on
// only adds. Where base has the files already it is some more: each old one has to be
// freed, and a link more is made and removed. BenchmarkCommit has the time of both.
func TestCommitCheap(t *testing.T) {
	const rounds, dirs, each = 8, 10, 100
	for name, c := range map[string]struct {
		fill, text string
		most       float64
	}{
		"made":   {"true", "mkdir new; cp -a ../../src/. new", 2.5},
		"append": {"cp -a src/. srv/app/old", "for f in old/*/*; do echo x >>$f; done", 9},
		"modes":  {"cp -a src/. srv/app/old", "chmod -R o-r old", 2.5},
	} {
		t.Run(name, func(t *testing.T) {
			img := testns.NewImage(t, testns.ImageOptions{Size: 1 << 30, Inodes: 60_000})
			r := newRigIn(t, img.Dir)
			defer func() { // before the image goes
				must(t, r.Session.Close())
				r.reopen()
			}()
			sh(t, img.Dir, fmt.Sprintf("for d in $(seq %d); do mkdir -p src/$d; for f in $(seq %d); do echo some bytes >src/$d/$f; done; done", dirs, each))
			var commit, link []time.Duration
			for range rounds {
				sh(t, img.Dir, "rm -rf srv/app/* linked; mkdir -p srv/app/old; "+c.fill+"; sync -f .")
				if res, out := r.run("cd " + r.tree + "; " + c.text); res.Snapshot.Changes.Total() < dirs*each {
					t.Fatal(res.Snapshot.Changes, out)
				}
				before := kernelTime(t, unix.RUSAGE_CHILDREN)
				sh(t, img.Dir, "cp -al src linked; sync -f .")
				link = append(link, kernelTime(t, unix.RUSAGE_CHILDREN)-before)
				before = kernelTime(t, unix.RUSAGE_SELF)
				must(t, commitAll(r))
				commit = append(commit, kernelTime(t, unix.RUSAGE_SELF)-before)
			}
			slices.Sort(commit)
			slices.Sort(link)
			ratio := float64(commit[rounds/4]) / float64(link[rounds/4])
			t.Logf("%.2f times: %v and %v", ratio, commit, link)
			if ratio > c.most {
				t.Errorf("%.2f times cp -al, at most %v", ratio, c.most)
			}
		})
	}
}

// kernelTime is what a process, or those that it waited for, took in the kernel: the
// race detector adds nothing to that.
func kernelTime(t *testing.T, who int) time.Duration {
	var u unix.Rusage
	must(t, unix.Getrusage(who, &u))
	return time.Duration(u.Stime.Nano())
}
