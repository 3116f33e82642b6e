package overlay

import (
	"context"
	"path/filepath"
	"testing"

	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// TestCommitLinksPowerCut: the power goes when a copy of a file that has several names
// has a name, and somebody's sync has just made that last. Who goes on trusts the name.
func TestCommitLinksPowerCut(t *testing.T) {
	testns.Need(t)
	img := testns.NewImage(t, testns.ImageOptions{})
	sh(t, img.Dir, "mkdir -p srv/app/d; seq 1000 > srv/app/a; ln srv/app/a srv/app/d/b")
	r := newSwapRigIn(t, img.Dir, Options{})
	sh(t, r.tree, "chmod 600 a")
	r.push()
	sh(t, img.Dir, "sync -f .")
	cut := false
	unhook := crash.SetHook(func(at string) {
		if at == "overlay.commit.kept" && !cut {
			cut = true
			sh(t, img.Dir, "touch another; sync another")
			testns.CutPower(img.Dir)
		}
	})
	err := r.d.Commit(context.Background(), r.v.Layers, func(snapshot.Progress) {})
	unhook()
	if err == nil || !cut {
		t.Fatal("no power cut in a commit")
	}
	r.d.Close() //nolint:errcheck // the disk is gone
	r.unmount(filepath.Dir(r.tree))
	img.Unmount()
	img.Mount()
	if r.d, err = New(Options{Tree: r.tree, State: filepath.Join(img.Dir, "state")}); err != nil {
		t.Fatal(err)
	}
	r.show()
	if err := r.d.Commit(context.Background(), r.v.Layers, func(snapshot.Progress) {}); err != nil {
		t.Fatal(err)
	}
	const whole = `seq 1000 | cmp - a; cmp a d/b; [ "$(stat -c %a a)" = 600 ]`
	sh(t, r.tree, whole)
	if err := r.d.Hide(context.Background()); err != nil {
		t.Fatal(err)
	}
	sh(t, r.tree, whole+"; [ a -ef d/b ]")
	if err := r.d.Close(); err != nil {
		t.Error(err)
	}
}
