package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/treecmp"
)

// sealedScript works in a tree that is pinned from the second step on, and then
// let go.
var sealedScript = []crashStep{
	{"run 1", runNth(1), 1},
	{"pin", pin, 1},
	{"run 2", runNth(2), 2},
	{"run 3", runNth(3), 3},
	{"rollback 2", back(2), 1},
	{"redo", redo, 3},
	{"rollback 1", back(1), 2},
	{"let go", letGo, 2},
	{"run 3 unpinned", runNth(3), 3},
	{"rollback all", func(r *rig) error {
		_, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{})
		return err
	}, 0},
}

func pinFile(r *rig) string { return filepath.Join(filepath.Dir(filepath.Dir(r.tree)), "holder") }

func pin(r *rig) error {
	cmd := exec.Command("sleep", "infinity")
	cmd.Dir = r.tree
	if err := cmd.Start(); err != nil {
		return err
	}
	return os.WriteFile(pinFile(r), fmt.Appendf(nil, "%d", cmd.Process.Pid), 0o600)
}

// letGo ends the holder, whoever started it.
func letGo(r *rig) error {
	b, err := os.ReadFile(pinFile(r))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return err
	}
	if err := os.Remove(pinFile(r)); err != nil { // the number may be another's soon
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return err
	}
	for err = unix.EINTR; errors.Is(err, unix.EINTR); {
		_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	}
	var st unix.WaitStatus
	unix.Wait4(pid, &st, unix.WNOHANG, nil) //nolint:errcheck // it may be another's child
	return err
}

// TestSealedCrashes kills the process at every kind of point in every step of
// work in a pinned tree, the first time (soak: and the last). The next one finds the tree as
// before the step or after it.
func TestSealedCrashes(t *testing.T) {
	if os.Getenv(envCrashDir) != "" {
		playSealed(t)
		return
	}
	if testing.Short() {
		t.Skip("takes a minute")
	}
	models := crashModels(t, crashCommands[:3])
	dir := t.TempDir()
	if err := sealedChild(dir, ""); err != nil {
		t.Fatal(err)
	}
	unmountAll(t, filepath.Join(dir, "srv", "app"))
	b, err := os.ReadFile(filepath.Join(dir, "points"))
	if err != nil {
		t.Fatal(err)
	}
	points := firstAndLast(strings.Fields(string(b)))
	for _, name := range []string{"overlay.captured", "overlay.restoring", "session.restored", "session.unpinning", "session.unpinned", "session.captured"} {
		if !strings.Contains(string(b), name) {
			t.Errorf("the script does not come by %s", name)
		}
	}
	t.Logf("%d points", len(points))
	for _, p := range points {
		t.Run(p, func(t *testing.T) { dieSealed(t, p, models) })
	}
}

// firstAndLast thins out "STEP/NAME:HIT"; the last ones are for soak.
func firstAndLast(all []string) (points []string) {
	last := map[string]string{}
	for _, p := range all {
		key, _, _ := strings.Cut(p, ":")
		if _, seen := last[key]; !seen {
			points = append(points, p)
		}
		last[key] = p
	}
	if os.Getenv("DEPLOYX_SOAK") == "" {
		return points
	}
	for _, p := range all {
		key, _, _ := strings.Cut(p, ":")
		if last[key] == p && !slices.Contains(points, p) {
			points = append(points, p)
		}
	}
	return points
}

func sealedChild(dir, point string) error {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestSealedCrashes$", "-test.count=1")
	cmd.Env = append(os.Environ(), envCrashDir+"="+dir, envCrashPoint+"="+point)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if point != "" && errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return nil
	}
	if err != nil || point != "" {
		return fmt.Errorf("child at %q: %w\n%s", point, err, out)
	}
	return nil
}

// playSealed is the child.
func playSealed(t *testing.T) {
	dir, target := os.Getenv(envCrashDir), os.Getenv(envCrashPoint)
	notes, err := os.OpenFile(filepath.Join(dir, "points"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	r := crashRig(t, dir)
	hits, step := map[string]int{}, 0
	crash.SetHook(func(name string) {
		key := fmt.Sprintf("%d/%s", step, name)
		hits[key]++
		point := fmt.Sprintf("%s:%d", key, hits[key])
		if target == "" && step >= 2 {
			io.WriteString(notes, point+"\n") //nolint:errcheck // the parent counts them
		} else if point == target {
			crashtest.Die(name)
		}
	})
	for i, s := range sealedScript {
		step = i
		if err := os.WriteFile(filepath.Join(dir, "step"), fmt.Appendf(nil, "%d", i), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := s.do(r); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
	}
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
}

func dieSealed(t *testing.T, point string, models []treecmp.Picture) {
	dir := t.TempDir()
	r := crashRig(t, dir)
	defer unmountAll(t, r.tree)
	defer letGo(r) //nolint:errcheck // the end of the test
	if err := sealedChild(dir, point); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "step"))
	if err != nil {
		t.Fatal(err)
	}
	var i int
	fmt.Sscan(string(b), &i) //nolint:errcheck // 0 is checked like any other
	r.reopen()
	n := checkCrashed(t, r, models, sealedScript[i-1].to, sealedScript[i].to)
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	r.reopen()
	checkCrashed(t, r, models, n, n)
	if err := letGo(r); err != nil {
		t.Fatal(err)
	}
	goOn(t, r, models, n)
}
