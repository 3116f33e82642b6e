package session

import (
	"fmt"
	"testing"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
)

// TestManyCommands: more commands than the kernel stacks layers. The stack
// stays shallow, and every snapshot can be gone back to.
func TestManyCommands(t *testing.T) {
	r := newRig(t)
	n := 700
	if testing.Short() {
		n = 100
	}
	want := map[int]treecmp.Picture{}
	var ids []Result
	for i := range n {
		if i%97 == 0 {
			want[i] = picture(t, r.tree)
		}
		res, _ := r.run(fmt.Sprintf("mkdir -p d%d; echo %d > d%d/f%d; rm -f d%d/f%d", i%7, i, i%7, i%50, (i+3)%7, i%50))
		ids = append(ids, res)
		if n := testns.MountedLayers(t, r.tree); n > 16 {
			t.Fatalf("after %d commands %d layers are mounted", i+1, n)
		}
	}
	for i := n - 1; i >= 0; i-- {
		if p, ok := want[i]; ok {
			r.rollback(ids[i].Snapshot.ID)
			// merged layers are hard links: see docs/design.md
			if d := treecmp.Diff(p, picture(t, r.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 {
				t.Errorf("back before command %d:\n%s", i, d)
			}
		}
	}
}
