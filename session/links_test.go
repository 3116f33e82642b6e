package session

import (
	"fmt"
	"os"
	"testing"
	"time"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

const linksBase = `mkdir -p d/e f
	echo 1 > a; ln a b; ln a d/c; ln a d/e/x; echo s > solo; ln -s a l; ln l f/l2; ln solo f/solo2
	truncate -s 1M big; ln big f/big2; echo t > t1; ln t1 d/e/t2
	git init -q src; git -C src -c user.name=n -c user.email=e commit -q --allow-empty -m one; git clone -q src clone
	find . -exec touch -h -d @1000000000 {} +`

var linksSteps = []string{
	"chmod -R go-r . && chmod a+x t1",
	"chown -R 5:6 d f",
	"echo more >> d/c",
	"echo within >> a && grep -q within b && echo two >> b && grep -q two d/e/x",
	"sed -i s/s/new/ f/solo2",
	"rm d/e/x",
	"chown -h 7:7 f/l2",
	"mv d/c d/z && echo z >> d/z",
	"cp --remove-destination solo b",
	"ln d/z again && chmod 640 again",
	"mv d moved && echo w >> moved/z",
	"echo gone >> again && rm again",
	"mv t1 moved/e/t0 && mv moved/e moved/g && echo t >> moved/g/t0",
	"rm moved/g/t0 && echo last >> moved/g/t2 && mkdir new && ln moved/g/t2 new/t3",
	"setfattr -n user.k -v v a && touch -d @5 big",
	"git -C clone -c safe.directory=* gc -q && chmod -R u+w src",
	"cp -al moved copy && echo copied >> copy/z",
}

// TestHardLinks: in a tree hard links are what they are in a plain directory,
// within a command and after it, and undone exactly. Also while the tree is
// pinned.
func TestHardLinks(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) { testHardLinks(t, r, linksSteps, 0, 0) })
	t.Run("pinned", func(t *testing.T) { testHardLinks(t, newRig(t), linksSteps, 0, len(linksSteps)) })
	t.Run("pinned for a while", func(t *testing.T) { testHardLinks(t, newRig(t), linksSteps, 3, 10) })
}

// joinedSteps are some after which names that the plain layout has parted can be put
// together.
var joinedSteps = []string{
	"chmod -R go-r .",
	"chown -R 5:6 d; chown 5:6 f/solo2",
	"echo more >> d/c",
	"sed -i s/s/new/ f/solo2",
	"rm d/e/x",
	"echo 2 >> a",
	"setfattr -n user.k -v v a b d/c && touch -d @5 big f/big2",
	"for n in a b; do echo alike > $n; done; touch -d @7 a b",
	"cp --remove-destination solo b",
	"ln a again && echo again >> again",
	"mkdir new && mv t1 new/t0 && chmod 600 new/t0",
	"git -C clone -c safe.directory=* gc -q && chmod -R u+w src",
}

// TestRejoin: in the plain layout hard links that a command has parted are one file
// again after it, where it is clear which.
func TestRejoin(t *testing.T) {
	testHardLinks(t, newPlainRig(t), joinedSteps, 0, 0)
	t.Run("committed", func(t *testing.T) {
		r := newPlainRig(t)
		if err := r.tryOutside(r.tree, linksBase); err != nil {
			t.Fatal(err)
		}
		for _, text := range joinedSteps {
			r.in(text)
		}
		want := picture(t, r.tree)
		if err := commitAll(r); err != nil {
			t.Fatal(err)
		}
		r.same("after the commit", want)
		if r.rec.Head().Open != "" {
			t.Error("the tree is no plain directory")
		}
	})
}

// testHardLinks compares after each step. A service holds the tree from one step
// to another.
func testHardLinks(t *testing.T, r *rig, steps []string, from, to int) {
	plain := t.TempDir()
	if err := os.Chmod(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.tryOutside(plain, linksBase); err != nil {
		t.Fatal(err)
	}
	began := time.Now().UnixNano()
	if err := r.tryOutside(r.tree, "cp -a "+plain+"/. ."); err != nil {
		t.Fatal(err)
	}
	then := func(ns int64) int64 { return min(ns, began) }
	var h *service
	var before []treecmp.Picture
	var ids []snapshot.ID
	for i, text := range steps {
		if i == from && i != to {
			s := hold(t, r.tree)
			h = &s
		}
		if i == to && h != nil {
			h.end()
		}
		before = append(before, picture(t, r.tree))
		ids = append(ids, r.in(text).Snapshot.ID)
		if err := r.tryOutside(plain, text); err != nil {
			t.Fatal(err)
		}
		o := treecmp.Options{AnyNlink: true, HoleSlack: 1 << 20, WantTime: then, GotTime: then}
		if d := treecmp.Diff(picture(t, plain), picture(t, r.tree), o); len(d) > 0 {
			t.Fatalf("%s: not what a plain directory is:\n%s", text, d)
		}
	}
	for i := len(ids) - 1; i >= 0; i-- {
		r.rollback(ids[i])
		r.same(fmt.Sprintf("before %q", steps[i]), before[i])
	}
}
