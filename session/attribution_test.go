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
