package overlay

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// inNamespace runs a script with a mount namespace of its own, until the test
// ends or stop is called. The script has said "up" when this returns.
func inNamespace(t *testing.T, propagation, script string, args ...string) (tell func(string) string, stop func()) {
	t.Helper()
	cmd := exec.Command("unshare", append([]string{"-m", "--propagation", propagation, "bash", "-c", script + "\nwhile read -r line; do eval \"$line\"; done", "bash"}, args...)...)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	in, out := testns.Start(t, cmd)
	tell = func(text string) string {
		t.Helper()
		if _, err := in.Write([]byte(text + "; echo\n")); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(testns.Line(t, out))
	}
	done := false
	stop = func() {
		if !done {
			done = true
			in.Close()     //nolint:errcheck // it ends the shell
			_ = cmd.Wait() // its status is that of the last line
		}
	}
	t.Cleanup(stop)
	tell("printf up")
	return tell, stop
}

// TestElsewhere: a mount of the tree in another namespace, or at another path, is
// a hold while it is there, unless it follows ours; then who stands in it is.
func TestElsewhere(t *testing.T) {
	testns.Need(t)
	for _, c := range []struct {
		name, propagation, script string
		says                      string // of the hold; "" if there must be none
	}{
		{"private", "private", "", "a mount of the tree in a namespace of its own"},
		{"slave", "slave", "", ""},
		{"cwd in a slave", "slave", "cd $1", "cwd"},
		{"written in a slave", "slave", "exec 7>>$1/n", "fd 7 (write)"},
		{"bind in a slave", "slave", "mount --bind $1 $2", "a mount of the tree in a namespace of its own"},
		{"another tree's", "private", "umount $1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newSharedRig(t)
			tell, stop := inNamespace(t, c.propagation, c.script, r.tree, filepath.Join(filepath.Dir(r.tree), "bind"))
			r.write(1)
			if only := r.d.onlyHere(); only != (c.says == "") && testns.Kernel(t, 6, 12) {
				t.Errorf("the kernel's own list says %t", only)
			}
			h, err := r.d.Elsewhere(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			old := r.v
			r.v = snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
			_, err = r.d.Show(context.Background(), r.v)
			if c.says == "" {
				if len(h) > 0 || err != nil {
					t.Fatal(h, err)
				}
				r.write(2)
				if c.propagation == "slave" {
					if got := tell("cat " + r.tree + "/n"); got != "2" {
						t.Errorf("the other namespace sees %q", got)
					}
				}
				return
			}
			if len(h) == 0 || !strings.Contains(h[0].How, c.says) || h[0].PID == 0 || snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
				t.Fatalf("want %q, got %+v, %v", c.says, h, err)
			}
			stop()
			if shown, err := r.d.Shown(context.Background()); err != nil || shown != old.Open {
				t.Errorf("after a refused swap the tree shows %s, not %s: %v", shown, old.Open, err)
			}
			r.show()
		})
	}
}

// TestElsewhereBind: a bind mount of the tree beside it is a hold.
func TestElsewhereBind(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	to := filepath.Join(filepath.Dir(r.tree), "bind")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(r.tree, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if r.d.onlyHere() {
		t.Error("the bind mount is not in the kernel's own list")
	}
	h, err := r.d.Elsewhere(context.Background())
	if err != nil || len(h) != 1 || h[0].Path != to {
		t.Error(h, err)
	}
	r.write(1)
	r.v = snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
	if _, err := r.d.Show(context.Background(), r.v); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Error(err)
	}
	if err := unix.Unmount(to, 0); err != nil {
		t.Fatal(err)
	}
	r.show()
}

// TestElsewhereHeldOpen: the kernel's own list sees a copy become held and idle again,
// and asking unmounts nothing.
func TestElsewhereHeldOpen(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 12, "a list of the mount namespaces")
	r := newSharedRig(t)
	tell, _ := inNamespace(t, "slave", "")
	if !r.d.onlyHere() {
		t.Fatal("an idle copy is not seen as one")
	}
	tell("exec 7<" + r.tree + "/.; cd " + r.tree)
	if r.d.onlyHere() {
		t.Error("a copy that is held is taken for an idle one")
	}
	tell("cd /; exec 7<&-")
	for range 3 {
		if !r.d.onlyHere() {
			t.Error("a copy that is idle again is not seen as one, or asking changed the answer")
		}
	}
}

// newSharedRig is a rig whose tree lies on a shared mount, as on a host with
// systemd.
func newSharedRig(t *testing.T) *swapRig {
	t.Helper()
	r := newSwapRigIn(t, testns.SharedDir(t), Options{})
	if err := os.Mkdir(filepath.Join(filepath.Dir(r.tree), "bind"), 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}
