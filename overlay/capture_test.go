package overlay

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// captureRig is a tree that is shown and never swapped, and the layers that were
// copied out of it.
type captureRig struct {
	testing.TB
	d     *Driver
	tree  string
	v     snapshot.View
	chain []snapshot.LayerID

	counted int // captures that told what they had counted
}

func newCaptureRig(t testing.TB, plain bool) *captureRig {
	testns.Need(t)
	dir := t.TempDir()
	r := &captureRig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	r.must(os.MkdirAll(r.tree, 0o755))
	r.sh("mkdir -p d/e/f big; echo 1 > d/a; echo 2 > d/e/b; echo 3 > d/e/f/c; ln d/a d/a2; for i in 1 2 3; do echo $i > big/$i; done; ln -s a d/l")
	d, err := New(Options{Tree: r.tree, State: filepath.Join(dir, "state"), Plain: plain})
	r.must(err)
	r.d = d
	t.Cleanup(func() {
		for unix.Unmount(r.tree, unix.MNT_DETACH) == nil { //nolint:revive // until nothing is mounted
		}
		if plain {
			unix.Unmount(d.base(), unix.MNT_DETACH) //nolint:errcheck // it may not be there
		}
	})
	r.show(nil)
	return r
}

func (r *captureRig) show(layers []snapshot.LayerID) {
	r.Helper()
	r.v = snapshot.View{Layers: layers, Open: snapshot.NewLayerID()}
	_, err := r.d.Show(context.Background(), r.v)
	r.must(err)
}

func (r *captureRig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *captureRig) sh(text string) {
	r.Helper()
	cmd := exec.Command("bash", "-ec", "cd \"$0\"; "+text, r.tree)
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		r.Fatalf("%s: %v\n%s", text, err, out)
	}
}

func (r *captureRig) capture() bool {
	r.Helper()
	id := snapshot.NewLayerID()
	found, err := r.d.Capture(context.Background(), r.v, r.chain, id, snapshot.CaptureOptions{})
	r.must(err)
	if !found.Differs {
		return false
	}
	if found.Counts != nil {
		var n snapshot.Counts
		r.must(r.d.Changes(context.Background(), r.chain, []snapshot.LayerID{id}, func(c snapshot.Change) error {
			n.Add(c)
			return nil
		}))
		if *found.Counts != n {
			r.Errorf("the capture counted %v, Changes %v", *found.Counts, n)
		}
		r.counted++
	}
	r.chain = append(slices.Clone(r.chain), id)
	return true
}

// same demands that the layers show what the tree does.
func (r *captureRig) same(what string) {
	r.Helper()
	dir := r.TempDir()
	m, err := r.d.has.newOverlay(spec{source: "test", lowers: r.d.lowers(r.d.units(r.chain))}, filepath.Join(r.d.layers, "stage"))
	r.must(err)
	if len(r.chain) > 0 {
		r.must(attach(m, dir, 0))
		defer unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // a test's
	}
	r.must(m.Close())
	want, err := treecmp.Take(r.tree)
	r.must(err)
	got, err := treecmp.Take(filepath.Join(dir, r.d.name))
	r.must(err)
	if d := treecmp.Diff(want, got, treecmp.Options{AnyNlink: true, AnyGroups: r.d.name == ""}); len(d) > 0 {
		r.Errorf("%s:\n%s", what, d)
	}
}

var captureSteps = []string{
	"echo more >> d/a",
	"mkdir n; echo x > n/x; mkfifo n/p; ln -s x n/l; mknod n/z c 1 3; setfattr -n user.k -v v n/x",
	"rm d/e/b; chmod 600 d/a; touch -d @5 n/x",
	"mv d moved",
	"echo in >> moved/e/f/c; rm -f moved/a2",
	"mv moved/e e; mkdir d; echo fresh > d/fresh",
	"mv n n2; echo y > n2/y; mkdir n; echo again > n/again",
	"rm -rf big; mkdir big; echo new > big/new",
	"rm -r moved; echo file > moved",
	"chmod 711 .; setfattr -n user.r -v w .; rm -r n2 n",
	"ln d/fresh d/fresh2; ln d/fresh third; chown 5:6 third",
	"truncate -s 3M sparse; echo end >> sparse; cp sparse s2",
	"rm moved; mv e moved; mv moved/f moved2",
	"rm -rf ./*",
	"mkdir -p d/e; echo back > d/e/b",
	"echo 1 > d/e/b; echo 2 > d/e/new; echo 3 > d/e/gone; touch d/e/t; ln -s x d/e/l",
	"rm d/e/gone; chmod 600 d/e/t; touch -d @9 d/e/l; rm d/e/new; mkfifo d/e/new; echo 11 > d/e/b",
}

// TestCapture: after every step the layers show what the tree does, nothing is
// made when nothing changed, and none is lost with the index.
func TestCapture(t *testing.T) {
	for _, plain := range []bool{false, true} {
		if plain && testing.Short() {
			continue
		}
		for _, mode := range []string{"index", "no index", "reopened", "every third", "on layers"} {
			t.Run(fmt.Sprintf("plain=%v/%s", plain, mode), func(t *testing.T) {
				r := newCaptureRig(t, plain)
				if mode == "on layers" {
					r.sh("echo l >> d/e/b; mv big bigger; rm d/a2")
					one := r.v.Open
					r.show([]snapshot.LayerID{one})
					r.chain = []snapshot.LayerID{one}
				}
				if r.capture() {
					t.Error("captured before anything changed")
				}
				for i, step := range captureSteps {
					r.sh(step)
					if mode == "every third" && i%3 != 0 {
						continue
					}
					switch mode {
					case "no index":
						r.d.indexes = nil
						os.Remove(r.d.dir(r.v.Open, "index"))
					case "reopened":
						r.d.indexes = nil
					}
					if !r.capture() {
						t.Errorf("%s: not seen", step)
					}
					r.same(step)
					if r.capture() {
						t.Errorf("%s: captured twice", step)
					}
				}
				// Taken together, the plain steps each touch a hard link, which is Changes' to look at.
				if r.counted == 0 && !(plain && mode == "every third") {
					t.Error("no capture told what it counted")
				}
			})
		}
	}
}
