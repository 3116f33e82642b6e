package session

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/overlay"
)

// newSharedRig is a rig on a mount that passes on what is mounted there, as systemd
// makes them.
func newSharedRig(t *testing.T, driver string) *rig {
	t.Helper()
	return newRigWith(t, testns.SharedDir(t), driver)
}

// apart starts the tree's bash in a mount namespace of its own, after a script.
func (r *rig) apart(t *testing.T, propagation, script string) *exec.Cmd {
	t.Helper()
	const last = `; exec "$1/bash" -c 'echo up; read x'`
	cmd := exec.Command("unshare", "-m", "--propagation", propagation, "bash", "-ec", script+last, "bash", r.tree)
	cmd.Dir = "/"
	in, out := testns.Start(t, cmd)
	t.Cleanup(func() {
		in.Close()     //nolint:errcheck // it ends the process
		_ = cmd.Wait() // its status is read's
	})
	if line := testns.Line(t, out); line != "up\n" {
		t.Fatal(line)
	}
	return cmd
}

// TestStaleElsewhere: a service with a mount namespace of its own is named too; what has
// another directory at the tree's path there is not.
func TestStaleElsewhere(t *testing.T) {
	const held = "held"
	for _, way := range []string{overlay.Name, held, fallback.Name} {
		if way == overlay.Name && (!testns.Kernel(t, 6, 8) || os.Getenv(envOld) != "") {
			continue // nothing tells which mounts those were
		}
		t.Run(way, func(t *testing.T) {
			driver := way
			if way == held {
				driver = overlay.Name
			}
			r := newSharedRig(t, driver)
			r.strict = true
			r.outside("cp $(command -v bash) bash; mkdir d")
			r.in("echo 1 > one")
			if way == held {
				hold(t, filepath.Join(r.tree, "d"))
			}
			id := r.in("cp bash new; echo >> new; mv new bash").Snapshot.ID
			stranger := r.apart(t, "private", `if mountpoint -q "$1"; then umount "$1"; fi; mount -t tmpfs x "$1/.."; mkdir "$1"; cp $(command -v bash) "$1"`)
			long := r.apart(t, "slave", ":")
			r.in("echo 2 > two")
			r.in("echo 3 > three")
			late := r.apart(t, "slave", ":")
			u := r.rollback(id)
			if u.InPlace != (way == held) {
				t.Errorf("in place: %v", u.InPlace)
			}
			for _, cmd := range []*exec.Cmd{long, late} {
				if why := ofPID(u.Stale, cmd.Process.Pid); !slices.Equal(why, []string{"bash executable reverted"}) {
					t.Errorf("%q in %+v", why, u.Stale)
				}
			}
			if why := ofPID(u.Stale, stranger.Process.Pid); len(why) > 0 {
				t.Errorf("one that has another directory there: %q", why)
			}
		})
	}
}

// TestRollbackElsewhere: a mount of the tree that no swap reaches is a hold for an undo
// as it is for a command.
func TestRollbackElsewhere(t *testing.T) {
	r := newRig(t)
	r.outside("cp $(command -v bash) bash")
	r.in("echo 1 > f")
	id := r.in("echo 2 > f; echo 2 > two").Snapshot.ID
	r.apart(t, "private", ":")
	if u := r.rollback(id); !u.InPlace {
		t.Error("not in place")
	}
	r.shows("rolled back", map[string]string{"f": "1\n"})
	if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
		t.Fatal(err)
	}
	r.shows("done again", map[string]string{"f": "2\n", "two": "2\n"})
}
