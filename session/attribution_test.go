package session

import (
	"context"
	"testing"
)

// TestSealedLinked: in a pinned tree a command changes the mode of a file that has
// several names. The kernel tells of it by the name that it has in the index, and it is
// the command's change all the same: undone with it, whatever others wrote is kept.
func TestSealedLinked(t *testing.T) {
	for _, text := range []string{"chmod 600 two", "chmod 600 one two", "sh -c 'exec chmod 600 one'", "touch -d 2001-02-03 two", "setfattr -n user.a -v b d/three"} {
		t.Run(text, func(t *testing.T) {
			r := newRig(t)
			r.run("cd $DEPLOYX_TREE; mkdir d; echo 1 > one; ln one two; ln one d/three")
			h := hold(t, r.tree)
			defer h.end()
			r.run("cd $DEPLOYX_TREE; chmod 640 d/three") // copied up
			want := picture(t, r.tree)
			c, _ := r.run("cd $DEPLOYX_TREE; " + text)
			if st, err := r.Status(context.Background()); err != nil || st.Drift {
				t.Errorf("%+v %v", st, err)
			}
			if c.Snapshot.Layer == "" {
				t.Error("the command changed nothing")
			}
			if _, err := r.Rollback(context.Background(), Target{ID: c.Snapshot.ID}, RollbackOptions{}); err != nil {
				t.Fatal(err)
			}
			r.same("rolled back", want)
		})
	}
}

// TestCommitPinnedDrift: after a commit in a tree that is held nobody has written
// anything, whatever the held layer has that base has too by now.
func TestCommitPinnedDrift(t *testing.T) {
	r := newRig(t)
	r.run("cd $DEPLOYX_TREE; mkdir d; echo 0 > d/f; echo 0 > g")
	h := hold(t, r.tree)
	defer h.end()
	r.committedUnder("first", 1)
	for _, text := range []string{"rm -r d; mkdir d; echo 1 > d/f; echo 1 > g", "chmod 600 g", "mv d e; echo 2 > e/g"} {
		r.run("cd $DEPLOYX_TREE; " + text)
		r.committedUnder(text, 1)
	}
}

// TestCommitPinnedHidden: a layer that a held tree stands on, and that is committed, goes
// on hiding what base gets later at the names that it removed. So such a name can go from
// the tree and leave nothing in the layer that is held; it has gone all the same.
func TestCommitPinnedHidden(t *testing.T) {
	for _, first := range []string{"command", "redo"} { // after the layer was committed
		t.Run(first, func(t *testing.T) {
			r := newRig(t)
			r.run("cd $DEPLOYX_TREE; mkdir d e; echo 0 > d/f; echo 0 > e/f; echo 0 > g")
			r.commit("")
			r.run("cd $DEPLOYX_TREE; rm -r d g")
			x, _ := r.run("cd $DEPLOYX_TREE; echo 0 > x")
			r.rollback(x.Snapshot.ID)
			h := hold(t, r.tree)
			defer h.end()
			r.committedUnder("removed", 1)
			if first == "redo" {
				if err := redo(r); err != nil {
					t.Fatal(err)
				}
			}
			r.run("cd $DEPLOYX_TREE; mkdir d; echo 1 > d/f; echo 1 > g")
			r.commit("")
			want := picture(t, r.tree)
			c, _ := r.run("cd $DEPLOYX_TREE; rm -r e; mv d e; rm g")
			gone := picture(t, r.tree)
			r.rollbackInPlace(c.Snapshot.ID)
			r.same("rolled back", want)
			if err := redo(r); err != nil {
				t.Fatal(err)
			}
			r.same("redone", gone)
			r.committedUnder("gone", 1)
			h.end()
			r.reopen()
			if err := r.FinishCommit(context.Background()); err != nil {
				t.Fatal(err)
			}
			sameTree(t, "plain", gone, r.tree)
		})
	}
}
