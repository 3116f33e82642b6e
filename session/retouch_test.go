package session

import (
	"context"
	"testing"

	"deployx/internal/treecmp"
)

// TestCommitAttributes: files of the directory whose attributes alone were changed
// are after a commit what the view showed, whatever there is about them; they keep
// their bytes in place where they have no other name.
func TestCommitAttributes(t *testing.T) {
	onLayouts(t, func(t *testing.T, r *rig) {
		sh(t, r.tree, `mkdir d
			for f in mode owner setid time xattr gone name flag same two again; do echo $f > d/$f; done
			ln d/name d/other; setfattr -n user.x -v 1 d/gone; chmod 4755 d/setid; chattr +A d/flag d/same; touch -d @5 d/*
			cp d/two d/three; chmod 604 d/again`)
		r.run("cd " + r.tree + `/d; chmod 600 mode; chown 7:8 owner; chown 9 setid; chmod 6755 setid; chmod 600 time; touch -h -d @77 time
			setfattr -n user.y -v 2 xattr; setfattr -x user.x gone; chmod 640 name; chattr -A flag; chmod 640 flag same; chmod 600 two three; echo AGAIN > again`)
		r.run("cd " + r.tree + "/d; chmod 711 two; echo more >> three; chmod 604 again")
		want := picture(t, r.tree)
		if c, err := r.Commit(context.Background(), CommitOptions{}); err != nil || !c.Plain {
			t.Fatal(c, err)
		}
		if d := treecmp.Diff(want, picture(t, r.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 { // the layers are in the trash
			t.Errorf("after the commit:\n%s", d)
		}
	})
}
