package overlay

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// TestUnproven: who is killed between a swap and its proof leaves a view in which
// somebody can still write. Who comes next names him, and freezes it once he has ended.
func TestUnproven(t *testing.T) {
	for _, point := range []string{"swapped", "surprised", "beneath", "gap"} {
		t.Run(point, func(t *testing.T) { everyWay(t, func(t *testing.T, r *mountRig) { r.unproven(point) }) })
	}
}

func (r *mountRig) unproven(point string) {
	t := r.t
	if point == "beneath" && !r.d.has.beneath || point == "gap" && r.d.has.beneath {
		return
	}
	r.show()
	sh(t, r.tree, "touch kept; mount -t tmpfs one data; echo in > data/in")
	r.push()
	r.v = snapshot.View{Layers: append(slices.Clone(r.v.Layers), r.v.Open), Open: snapshot.NewLayerID()}
	var p *player
	var old *os.File
	r.hook = func(at string) {
		if at != "overlay.built" {
			return
		}
		p = play(t, "surprised-kept", r.tree)
		var err error
		if old, err = openTree(unix.AT_FDCWD, r.tree, unix.OPEN_TREE_CLONE); err != nil {
			t.Fatal(err)
		}
	}
	if !r.dieAt("overlay."+point, r.show) {
		t.Fatal("the point was not passed")
	}
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	if point == "beneath" { // he is found as a holder
		p.end(t)
		r.show()
	} else {
		r.show()
		if len(said) != 1 || !strings.Contains(said[0], fmt.Sprintf("(%d, ", p.cmd.Process.Pid)) {
			t.Errorf("%q", said)
		}
		p.end(t)
		r.push()
	}
	if _, err := openAt(int(old.Fd()), "kept", unix.O_WRONLY); !errors.Is(err, unix.EROFS) {
		t.Error("the view before can be written to:", err)
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	r.want("proven", "data")
	if n := r.ours(); n != 1 || mounts.IsRoot(r.d.proof()) {
		t.Errorf("%d mounts, or the one before", n)
	}
}
