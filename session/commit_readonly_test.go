package session

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/testns"
)

// newApartRig is a rig of which base alone is on a filesystem of its own: a tree that
// is a mount.
func newApartRig(t testing.TB) (r *rig, remount func(flags uintptr)) {
	img := testns.NewImage(t, testns.ImageOptions{})
	dir := t.TempDir()
	tree := filepath.Join(dir, "srv", "app")
	must(t, unix.Mkdir(filepath.Dir(tree), 0o755))
	must(t, unix.Mkdir(tree, 0o755))
	must(t, unix.Mount(img.Dir, tree, "", unix.MS_BIND, ""))
	t.Cleanup(func() { // after the rig's own
		bases, _ := filepath.Glob(filepath.Join(dir, "state", "trees", "*", "layers", "base"))
		for _, b := range append(bases, tree) {
			unix.Unmount(b, unix.UMOUNT_NOFOLLOW) //nolint:errcheck // not mounted when the tree is plain
		}
	})
	return newRigIn(t, dir), func(flags uintptr) {
		must(t, unix.Mount("", img.Dir, "", unix.MS_REMOUNT|flags, ""))
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestCommitTurnsReadOnly has base's filesystem turn read-only at each point of a
// commit: that one fails, the tree shows what it showed and can be worked in, and once
// base can be written again the next operation finishes the commit.
func TestCommitTurnsReadOnly(t *testing.T) {
	r, remount := newApartRig(t)
	must(t, r.try("cd "+r.tree+"; echo base >f; mkdir d; echo 1 >d/1; echo 2 >d/2; ln d/2 d/3; echo g >g"))
	must(t, commitAll(r))
	failed := 0
	for n := 1; ; n++ {
		must(t, r.try("cd "+r.tree+"; date +%N >f; chmod 600 g; truncate -s 1M big; echo end >>big"))
		must(t, r.try("cd "+r.tree+"; rm -rf d e; mkdir d e; echo 4 >d/4; ln d/4 d/5; echo x >e/x; mv e e2; rm -rf e; mv e2 e; chmod 644 g"))
		want, hits := picture(t, r.tree), 0
		off := crash.SetHook(func(at string) {
			if strings.HasPrefix(at, "overlay.commit.") {
				if hits++; hits == n {
					remount(unix.MS_RDONLY)
				}
			}
		})
		err := commitAll(r)
		off()
		if hits < n {
			must(t, err)
			break
		}
		if err != nil {
			failed++
			if !strings.Contains(err.Error(), "is on a read-only filesystem\ncommit once it can be written") {
				t.Fatal(err)
			}
			sameTree(t, "failed", want, r.tree)
			must(t, r.try("X=1"))
			must(t, r.try("cd "+r.tree+"; echo more >more"))
			must(t, back(1)(r))
			if r.rec.Head().Committing == "" {
				t.Fatalf("at point %d: %v, and nothing is left to do", n, err)
			}
		}
		remount(0)
		if n%2 == 0 {
			must(t, r.Session.Close())
			r.reopen()
		}
		must(t, r.try("X=2"))
		if h := r.rec.Head(); h.Committing != "" {
			t.Fatalf("at point %d: not finished: %+v", n, h)
		}
		must(t, r.exclusively(context.Background(), func() error { return nil }))
		sameTree(t, "finished", want, r.tree)
		must(t, commitAll(r))
		sameTree(t, "plain", want, r.tree)
	}
	if failed < 8 {
		t.Errorf("only %d commits failed", failed)
	}
}
