package overlay

import (
	"slices"
	"testing"

	"github.com/moby/sys/mountinfo"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// ours counts our mounts on the tree's path.
func (r *swapRig) ours() int {
	r.t.Helper()
	list, err := mountinfo.GetMounts(exactly(r.tree))
	if err != nil {
		r.t.Fatal(err)
	}
	return len(list)
}

// TestTakeOver: a mount that one who was killed left beneath the old one is the one
// that the next shows, with what is mounted below the tree now.
func TestTakeOver(t *testing.T) {
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	everyWay(t, func(t *testing.T, r *mountRig) {
		if !r.d.has.beneath {
			return
		}
		sh(t, r.tree, "echo a > a; ln a b; mkdir new")
		r.show()
		r.mountAll()
		r.write(1)
		r.v = snapshot.View{Layers: append(slices.Clone(r.v.Layers), r.v.Open), Open: snapshot.NewLayerID()}
		if !r.dieAt("overlay.beneath", r.show) {
			t.Fatal("the point was not passed")
		}
		if n := r.ours(); n != 2 {
			t.Fatalf("%d mounts, want both", n)
		}
		sh(t, r.tree, "umount late; mount -t tmpfs x new; echo drift > drift")
		said := ""
		r.d.OnWait(func(s string) { said += s })
		r.show()
		if n := r.ours(); n != 1 || said != "" {
			t.Errorf("%d mounts, said %q", n, said)
		}
		r.want("taken over", "conf/c data data/two new")
		sh(t, r.tree, "test $(cat data/two/f) = two; test $(cat drift) = drift; test $(cat n) = 1; echo more >> a")
		if r.d.name != "" {
			sh(t, r.tree, "cmp a b")
		}
		r.push()
		r.want("the next", "conf/c data data/two new")
		if n := r.ours(); n != 1 {
			t.Errorf("%d mounts after the next swap", n)
		}
		sh(t, r.tree, `test "$(cat a)" = "a
more"`)
	})
}
