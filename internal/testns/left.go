package testns

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"testing"

	"github.com/moby/sys/mountinfo"

	"deployx/internal/procstat"
)

// LeftBehind fails t if, when it ends, there are mounts in the namespace or
// processes of this one's that were not there when it was called. Call it first
// in a test, so that its check runs after every other clean-up.
func LeftBehind(t testing.TB) {
	t.Helper()
	mounts, err := mountPoints()
	if err != nil {
		t.Fatal(err)
	}
	already := map[string]bool{}
	for _, p := range processes() {
		already[p] = true
	}
	t.Cleanup(func() {
		left, err := leftMounts(mounts)
		if err != nil {
			t.Error(err)
		}
		for _, p := range processes() {
			if !already[p] {
				left = append(left, p)
			}
		}
		for _, l := range left {
			t.Errorf("left behind: %s", l)
		}
	})
}

// MountsBelow lists the mount points at and below dir, the topmost of a stack
// last.
func MountsBelow(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("mounts below %q: %w", dir, err)
	}
	var points []string
	for _, i := range infos {
		points = append(points, i.Mountpoint)
	}
	return points, nil
}

func leftSince(mounts map[string]int) ([]string, error) {
	left, err := leftMounts(mounts)
	return append(left, processes()...), err
}

// leftMounts are the mount points that hold more mounts than before.
func leftMounts(before map[string]int) ([]string, error) {
	now, err := mountPoints()
	var left []string
	for point, n := range now {
		if n > before[point] {
			left = append(left, fmt.Sprintf("%d mount(s) on %q", n-before[point], point))
		}
	}
	return left, err
}

// mountPoints counts the mounts of the namespace by mount point.
func mountPoints() (map[string]int, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("mount table: %w", err)
	}
	points := map[string]int{}
	for _, i := range infos {
		points[i.Mountpoint]++
	}
	return points, nil
}

// processes are those that run in this process's namespace, or were started by
// a test that does, other than itself and what it descends from. One that has
// ended and only waits to be reaped does not count.
func processes() []string {
	here, _ := os.Readlink("/proc/self/ns/mnt") //nolint:errcheck // then nothing matches
	mine := []byte(envInside + "=" + os.Getenv(envInside) + "\x00")
	procs, _ := os.ReadDir("/proc") //nolint:errcheck // then there are none
	family := ancestors()
	var found []string
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || family[pid] {
			continue
		}
		ns, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))   //nolint:errcheck // gone meanwhile
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) //nolint:errcheck // gone meanwhile
		if ns != "" && ns == here || bytes.Contains(env, mine) {
			cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) //nolint:errcheck // gone meanwhile
			found = append(found, fmt.Sprintf("process %d %q", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		}
	}
	return found
}

// ancestors are this process and those above it.
func ancestors() map[int]bool {
	above := map[int]bool{}
	for pid := os.Getpid(); pid > 1 && !above[pid]; pid = parentOf(pid) {
		above[pid] = true
	}
	return above
}

// parentOf is 0 when pid is gone.
func parentOf(pid int) int {
	f := procstat.Fields(fmt.Sprintf("/proc/%d/stat", pid))
	if f == nil {
		return 0
	}
	ppid, _ := strconv.Atoi(f[procstat.Parent]) //nolint:errcheck // the kernel writes numbers
	return ppid
}
