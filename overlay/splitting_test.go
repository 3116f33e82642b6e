package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/snapshot"
)

const (
	splitInside = "mkdir -p d/e; echo a > a; ln a a2; ln a d/e/a3; echo b > b; ln b d/b2; echo s > s; echo o > o"
	splitBase   = splitInside + "; ln o ../outside"
)

var splitCases = []struct {
	name, text string
	want       string // the names that came apart, where the kernel keeps no index

	byAttributes bool // older kernels can tell, too
}{
	{"attributes", "chmod 600 a", "a", true},
	{"bytes", "echo more >> d/e/a3", "d/e/a3", false},
	{"two of three, written alike", "echo more >> a; echo more >> a2", "a a2", false},
	{"each for itself", "echo 1 >> b; chmod 600 d/b2", "b d/b2", false},
	{"two groups", "chmod 600 a; echo 1 >> d/b2; echo s >> s", "a d/b2", false},
	{"moved", "mv b z", "z", true},
	{"moved with its directory", "mv d z; chmod 600 z/b2", "z/b2", true},
	{"moved over another", "mv b a", "a", true},
	{"a single one moved over one", "mv s a", "", false},
	{"a single one written and moved over one", "echo x >> s; mv s a", "", false},
	{"replaced", "cp -a a t; echo more >> t; mv t a", "", false},
	{"replaced by sed", "sed -i s/a/x/ a2", "", false},
	{"removed and made anew", "rm a; echo new > a", "", false},
	{"the other removed", "rm b; chmod 600 d/b2", "", false},
	{"the other removed with its directory", "rm -r d; echo more >> b", "", false},
	{"the other replaced", "echo new > t; mv t b; echo more >> d/b2", "", false},
	{"linked again after a change", "echo more >> b; ln -f b d/b2", "", false},
	{"new files", "echo n > n; ln n n2; chmod 600 n", "", false},
	{"a new name", "ln a n", "", false},
	{"a new name of a single file", "ln s s2; chmod 600 s2", "", false},
	{"the other name is outside", "chmod 600 o", "", false},
	{"new over old", "echo n > n; ln -f n a; ln -f n b", "", false},
}

// newSplitRig makes a captureRig with an empty tree that is not shown yet.
func newSplitRig(t *testing.T, o Options, dir string) *captureRig {
	r := &captureRig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	r.must(os.MkdirAll(r.tree, 0o755))
	o.Tree, o.State = r.tree, filepath.Join(dir, "state")
	d, err := New(o)
	r.must(err)
	r.d = d
	t.Cleanup(func() {
		r.must(d.Hide(context.Background()))
		r.must(d.unbindBase())
	})
	return r
}

// newPartedRig shows a tree, with the base in a layer or not, in which text has been run.
func newPartedRig(t *testing.T, plain, layered bool, text string) (*captureRig, []snapshot.LayerID) {
	t.Helper()
	r := newSplitRig(t, Options{Plain: plain}, t.TempDir())
	var below []snapshot.LayerID
	if layered {
		r.show(nil)
		r.sh(splitInside) // a link to the outside is EXDEV
		below = []snapshot.LayerID{r.v.Open}
	} else {
		r.sh(splitBase)
	}
	r.show(below)
	r.sh(text)
	return r, below
}

// splits are the names that a layer's changes say came apart.
func (r *captureRig) splits(below []snapshot.LayerID, layers ...snapshot.LayerID) string {
	r.Helper()
	var found []string
	r.must(r.d.Changes(context.Background(), below, layers, func(c snapshot.Change) error {
		if c.SplitLink {
			found = append(found, c.Path)
		}
		return nil
	}))
	return strings.Join(found, " ")
}

// TestSplitLinks: names that a command parted from others of the same file are told,
// of base and of a layer, and nothing else is. With an index none is parted.
func TestSplitLinks(t *testing.T) {
	testns.Need(t)
	known := testns.Kernel(t, 6, 6)
	for _, c := range splitCases {
		for _, plain := range []bool{true, false} {
			for _, layered := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/plain=%v,layered=%v", c.name, plain, layered), func(t *testing.T) {
					r, below := newPartedRig(t, plain, layered, c.text)
					want := c.want
					if !plain || !known && !c.byAttributes {
						want = ""
					}
					if kept, err := r.d.keepsIndex(context.Background()); kept == plain || err != nil {
						t.Errorf("an index: %v %v", kept, err)
					}
					if got := r.splits(below, r.v.Open); got != want {
						t.Errorf("%s: told %q, want %q", c.text, got, want)
					}
				})
			}
		}
	}
}

// TestSplitLinksMerged: a file's names in merged runs and in a base that was
// committed to are none of the tree's.
func TestSplitLinksMerged(t *testing.T) {
	testns.Need(t)
	r := newSplitRig(t, Options{Plain: true, MergeAbove: 1}, t.TempDir())
	ctx := context.Background()
	var below []snapshot.LayerID
	for _, text := range []string{"echo 1 > one; echo g > g; ln g g2", "echo 2 > two; mkdir d", "echo 3 > d/three"} {
		r.show(below)
		r.sh(text)
		below = append(slices.Clone(below), r.v.Open)
	}
	r.show(below)
	r.must(r.d.Maintain(ctx, r.v))
	r.show(append(slices.Clone(below), r.v.Open)) // stands on the run
	below = r.v.Layers
	var st unix.Stat_t
	r.must(unix.Lstat(filepath.Join(r.d.units(below)[len(r.d.units(below))-1].dir, "u", "one"), &st))
	if st.Nlink < 2 {
		t.Fatalf("no run: %d links", st.Nlink)
	}
	v, err := r.d.view(below, nil)
	r.must(err)
	for name, want := range map[string]bool{"one": false, "g": true} {
		e, err := v.resolve(name, false)
		r.must(err)
		if got, err := r.d.grouped(v, e); got != want || err != nil {
			t.Errorf("%s: grouped %v %v", name, got, err)
		}
		e.close()
	}
	v.close()
	r.sh("chmod 600 one; echo more >> d/three; echo more >> g")
	if got := r.splits(below, r.v.Open); got != "g" {
		t.Errorf("on a run: told %q", got)
	}
	below = append(slices.Clone(below), r.v.Open)
	r.show(below)
	r.must(r.d.Commit(ctx, below, func(snapshot.Progress) {}))
	r.must(unix.Lstat(filepath.Join(r.d.base(), "d", "three"), &st))
	if st.Nlink < 2 {
		t.Fatalf("base has no links to layers: %d", st.Nlink)
	}
	r.show(nil)
	r.sh("chmod 640 one; echo more >> d/three; echo x >> two; chmod 600 g")
	if got := r.splits(nil, r.v.Open); got != "" {
		t.Errorf("after a commit: told %q", got)
	}
}

// TestSplitLinksCaptured: what was copied out of a layer that goes on being written to
// says the same, and does not count for itself then.
func TestSplitLinksCaptured(t *testing.T) {
	testns.Need(t)
	for _, plain := range []bool{true, false} {
		r := newSplitRig(t, Options{Plain: plain}, t.TempDir())
		r.sh(splitBase)
		r.show(nil)
		for _, step := range []struct {
			text, want string
			counts     bool
		}{
			{"echo s >> s; echo n > n", "", true},
			{"chmod 600 a; echo more >> d/b2; echo s >> s", "a d/b2", !plain},
			{"echo more >> a; echo more >> d/b2", "", true},
			{"sed -i s/a/x/ a2", "", !plain},
		} {
			r.sh(step.text)
			id := snapshot.NewLayerID()
			found, err := r.d.Capture(context.Background(), r.v, r.chain, id, snapshot.CaptureOptions{})
			r.must(err)
			if !found.Differs || (found.Counts != nil) != step.counts {
				t.Errorf("plain=%v: %s: %+v", plain, step.text, found)
			}
			want := step.want
			if !plain {
				want = ""
			}
			if got := r.splits(r.chain, id); got != want {
				t.Errorf("plain=%v: %s: told %q, want %q", plain, step.text, got, want)
			}
			r.chain = append(slices.Clone(r.chain), id)
		}
	}
}

// TestSplitLinksNoHandles: on a filesystem without file handles the kernel keeps no
// index in the other layout either, and knows what it copied up by attributes alone.
func TestSplitLinksNoHandles(t *testing.T) {
	testns.Need(t)
	dir := t.TempDir()
	srv := filepath.Join(dir, "srv")
	if err := errors.Join(os.Mkdir(srv, 0o755), unix.Mount("ramfs", srv, "ramfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(srv, unix.UMOUNT_NOFOLLOW) }) //nolint:errcheck // the namespace goes
	r := newSplitRig(t, Options{}, dir)
	r.sh(splitBase)
	r.show(nil)
	r.sh("chmod 600 a; echo more >> d/b2; sed -i s/b/x/ b; chmod 600 s")
	if got := r.splits(nil, r.v.Open); got != "a" || r.d.name == "" {
		t.Errorf("told %q", got)
	}
}
