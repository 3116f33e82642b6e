package session

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// surprised opens a file just before the next swap, when it has been looked for such,
// and has others write by path while the new view is shown.
func (r *rig) surprised(name, others string) (release func()) {
	var f *os.File
	unhook := crash.SetHook(func(at string) {
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
