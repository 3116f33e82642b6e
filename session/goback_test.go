package session

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// surprised opens a file just before the next swap, when it has been looked for such,
// and has others write by path while the new view is shown.
func (r *rig) surprised(name, others string) (release func()) {
	var f *os.File
	unhook := crash.SetHook(func(at string) {
		if r.hook != nil {
			r.hook(at)
		}
		var err error
		switch {
		case at == "overlay.built" && f == nil:
			f, err = os.OpenFile(filepath.Join(r.tree, name), os.O_WRONLY|os.O_APPEND, 0)
		case at == "overlay.swapped" && others != "":
			text := others
			others = ""
			err = r.tryOutside(r.tree, text)
		}
		if err != nil {
			r.Error(err)
		}
	})
	return func() {
		unhook()
		if f == nil || others != "" {
			r.Fatal("there was no swap")
		}
		_, err := f.WriteString("held\n")
		if err != nil || f.Close() != nil {
			r.Fatal(err)
		}
	}
}

// TestGoBack: a swap after a command, and one of a rollback, that had to be taken back
// lose nothing of what was written while the new view was shown.
func TestGoBack(t *testing.T) {
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	r := newRig(t)
	r.strict = true
	const base = "echo 0 > log; echo 0 > kept; mkdir d; echo 0 > d/f; "
	r.in(base)
	release := r.surprised("kept", "echo 1 >> log; mv d e; echo new > e/n; rm e/f")
	r.in("echo command > c")
	release()
	const pushed = base + "echo 1 >> log; mv d e; echo new > e/n; rm e/f; echo held >> kept; echo command > c; "
	r.wantTree(pushed)
	two := r.in("echo two > two")

	release = r.surprised("kept", "echo 2 >> log; echo late > late")
	_, err := r.Rollback(context.Background(), Target{ID: two.Snapshot.ID}, RollbackOptions{})
	release()
	if snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Fatal(err)
	}
	const late = pushed + "echo 2 >> log; echo late > late; echo held >> kept; "
	r.wantTree(late + "echo two > two")
	r.rollback(two.Snapshot.ID)
	r.wantTree(late)
}

const (
	envBackDir    = "DEPLOYX_TEST_BACK_DIR"
	envBackPoint  = "DEPLOYX_TEST_BACK_POINT" // NAME:HIT
	envBackOthers = "DEPLOYX_TEST_BACK_OTHERS"
)

// TestGoBackKilled kills a process on the way back, and the next one in a command. Each
// command is undone alone, though the host has booted since.
func TestGoBackKilled(t *testing.T) {
	if dir := os.Getenv(envBackDir); dir != "" {
		playGoBack(t, dir)
		return
	}
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	for _, c := range []struct{ point, others string }{
		{"overlay.back.noted:1", ":"},
		{"overlay.back.noted:1", "echo other > other"},
		{"overlay.beneath:2", ":"}, // the old view is beneath the new one
		{"overlay.back.shown:1", ":"},
		{"overlay.back.settled:1", ":"},
	} {
		t.Run(c.point+" "+c.others, func(t *testing.T) {
			dir := t.TempDir()
			dieGoingBack(t, dir, c.point, c.others)
			dieGoingBack(t, dir, "session.ran:1", "")
			r := crashRig(t, dir)
			defer r.boot()
			one := "echo 0 > kept; echo one > one; " + c.others + "; "
			for range 2 {
				r.boot()
				r.reopen()
				if _, err := r.Session.Restore(context.Background()); err != nil {
					t.Fatal(err)
				}
				r.wantTree(one + "echo two > two")
			}
			if _, err := r.Rollback(context.Background(), Target{Last: 1}, RollbackOptions{}); err != nil {
				t.Fatal(err)
			}
			r.wantTree(one)
			if err := r.Session.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// boot takes away the mounts that a boot does.
func (r *rig) boot() {
	for _, at := range []string{r.tree, filepath.Join(r.opts.Tree.Store, "layers", "proof")} {
		unmountAll(r.TB.(*testing.T), at) //nolint:forcetypeassert // a test's
	}
}

func dieGoingBack(t *testing.T, dir, point, others string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.count=1", "-test.run=^TestGoBackKilled$")
	cmd.Env = append(os.Environ(), envBackDir+"="+dir, envBackPoint+"="+point, envBackOthers+"="+others)
	if out, err := cmd.CombinedOutput(); cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL { //nolint:forcetypeassert // on Linux it is
		t.Fatalf("child at %q: %v\n%s", point, err, out)
	}
}

func playGoBack(t *testing.T, dir string) {
	r := crashRig(t, dir)
	hits := map[string]int{}
	r.hook = func(at string) {
		if hits[at]++; os.Getenv(envBackPoint) == fmt.Sprintf("%s:%d", at, hits[at]) {
			unix.Kill(os.Getpid(), unix.SIGKILL) //nolint:errcheck // it does not return
			select {}
		}
	}
	if others := os.Getenv(envBackOthers); others != "" {
		r.in("echo 0 > kept")
		r.surprised("kept", others)
		r.in("echo one > one")
		t.Fatal("not passed")
	}
	crash.SetHook(r.hook)
	r.in("echo two > two")
}
