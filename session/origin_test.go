package session

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOriginAfterBoot: a service holds the tree, and a command changes attributes of
// files of which the command before it had changed the attributes. The upper notes what
// they were copied up from, which is in no layer any more once that is part of base or
// of the floor. After a boot the tree shows them all the same.
func TestOriginAfterBoot(t *testing.T) {
	for _, how := range []string{"committed", "folded"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			r.put("f", "bytes\n")
			r.run("cd $DEPLOYX_TREE; mkdir d; echo bytes > d/f; echo bytes > g; ln g g2")
			r.commit("")
			r.run("cd $DEPLOYX_TREE; chmod 600 f d/f g")
			r.run("cd $DEPLOYX_TREE; mkdir kept")
			h := hold(t, r.tree)
			if how == "committed" {
				r.commit("")
			} else if _, err := r.Expire(context.Background(), 0); err != nil {
				t.Fatal(err)
			}
			r.run("cd $DEPLOYX_TREE; chmod 640 f d/f g")
			want := picture(t, r.tree)
			h.end()
			if err := r.Session.Close(); err != nil {
				t.Fatal(err)
			}
			unmountAll(t, r.tree)
			r.reopen()
			if _, err := r.Restore(context.Background()); err != nil {
				t.Fatal(err)
			}
			r.same("after a boot", want)
			if b, err := os.ReadFile("/proc/self/mounts"); err != nil || !strings.Contains(string(b), "index=on") {
				t.Errorf("%v: mounted without an index, so that hard links come apart:\n%s", err, b)
			}
			r.run("cd $DEPLOYX_TREE; chmod 604 g2")
			a, b := filepath.Join(r.tree, "g"), filepath.Join(r.tree, "g2")
			if !sameFile(t, a, b) {
				t.Error("g and g2 are two files")
			}
		})
	}
}

func sameFile(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	return os.SameFile(x, y)
}
