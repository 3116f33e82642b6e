package snapshottest

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// rig is a driver, the plain directory that does the same, and the history that
// the driver's caller would keep. Its methods end the test at the first
// difference: what comes after would only repeat it.
type rig struct {
	t     *testing.T
	o     Options
	open  Open
	at    Place
	d     snapshot.Driver
	tree  *side
	plain *side

	view   snapshot.View   // what the tree shows; no Open: it is hidden
	clean  treecmp.Picture // the tree when view was first shown
	looked bool            // nothing but reading since then
	states map[string]*state
	order  []string // keys of states, oldest first
	kept   int      // copies of the plain directory
	story  []string // what was done, to be told when the test fails
	behind *state   // what the plain directory must be made to be before it is used
}

// state is a point that can be gone back to.
type state struct {
	layers []snapshot.LayerID
	tree   treecmp.Picture
	plain  string // a copy of the plain directory
}

// newRig makes a tree by the operations base, opens the driver on it and shows
// an open layer.
func newRig(t *testing.T, o Options, open Open, base ...Op) *rig {
	t.Helper()
	at := o.Place(t)
	r := &rig{
		t: t, o: o, open: open, at: at,
		tree: newSide(at.Tree), plain: newSide(at.Plain), states: map[string]*state{},
	}
	r.plain.splits, r.plain.opens = o.SplitsHardLinks, o.OpenTouches
	t.Cleanup(r.cleanUp)
	r.tree.step(func() {
		for _, op := range base {
			if err := r.tree.apply(op); err != nil {
				t.Fatalf("base: %v: %v", op, err)
			}
		}
	})
	r.plain.spans = slices.Clone(r.tree.spans)
	pic, err := exactClone(at.Tree, at.Plain)
	r.must("copy base", err)
	r.keep(nil, pic)
	now := clock(unix.CLOCK_REALTIME)
	r.tree.since, r.plain.since = now, now
	r.d = open(t, at.Tree, at.State)
	r.wantShown("")
	r.show(nil, pic)
	return r
}

// must ends the test on an error.
func (r *rig) must(what string, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

func (r *rig) ctx() context.Context { return r.t.Context() }

// do applies ops on both sides, compares their outcomes, and then the trees.
func (r *rig) do(ops ...Op) {
	r.t.Helper()
	ops = r.o.whole(slices.Clone(ops))
	r.tell("%s", strings.TrimSuffix(listing(ops), "\n"))
	r.restorePlain()
	var want []error
	r.plain.step(func() {
		for i := 0; i < len(ops); {
			if r.o.held && r.plain.refusedLate(ops[i]) {
				ops = slices.Delete(ops, i, i+1)
				continue
			}
			want = append(want, r.expected(ops[i]))
			i++
		}
	})
	r.tree.step(func() {
		for i, got := range r.onTree(ops) {
			if got != want[i] { //nolint:errorlint // error numbers
				r.t.Fatalf("%v: want error %v, got %v", ops[i], want[i], got)
			}
		}
	})
	if slices.ContainsFunc(ops, func(op Op) bool { return !changesNothing(op) }) {
		r.looked = false
	}
	r.compare()
}

// onTree applies ops to the tree, or has them applied.
func (r *rig) onTree(ops []Op) []error {
	r.t.Helper()
	if d, ok := r.d.(Doer); ok {
		got, err := d.Do(ops)
		r.must("do", err)
		return got
	}
	got := make([]error, len(ops))
	for i, op := range ops {
		got[i] = r.tree.apply(op)
	}
	return got
}

// expected applies op on the plain side, unless the driver is known to refuse it.
func (r *rig) expected(op Op) error {
	switch {
	case r.view.Open == "":
	case r.o.NoWhiteoutDevices && op.Verb == "mkchar" && op.N == 0 && kind(at(r.plain.root, op.Path)) == 0 &&
		kind(filepath.Dir(at(r.plain.root, op.Path))) == unix.S_IFDIR:
		return unix.EPERM
	case r.o.LongRenames && r.needsLongRedirect(op):
		r.must("copy up", r.plain.before(r.plain.root, op))
		return unix.EXDEV
	}
	return r.plain.apply(op)
}

// needsLongRedirect: overlayfs would have to note where a directory, or a file
// of which it keeps the attributes only (metacopy), comes from.
func (r *rig) needsLongRedirect(op Op) bool {
	if len(op.Path) <= redirectMax || r.clean[op.Path].Type == 0 {
		return false
	}
	moves := op.Verb == "rename" && filepath.Dir(op.Path) != filepath.Dir(op.To)
	switch path := at(r.plain.root, op.Path); kind(path) {
	case unix.S_IFDIR:
		return moves
	case unix.S_IFREG:
		return (moves || op.Verb == "link") && r.o.OpenTouches && r.plain.dataBelow(path)
	}
	return false
}

// redirectMax is the default of overlayfs's parameter redirect_max, in bytes.
const redirectMax = 256

// compare demands that the tree equals the plain one.
func (r *rig) compare() {
	r.t.Helper()
	want, got := r.picture(r.plain.root), r.picture(r.tree.root)
	ds := treecmp.Diff(want, got, treecmp.Options{
		AnyNlink: r.o.CountsLayers, HoleSlack: holeSlack,
		WantTime: r.plain.stepOf, GotTime: r.tree.stepOf,
	})
	if len(ds) > 0 {
		r.t.Fatalf("the tree differs from a plain directory that took the same operations:\n%v", ds)
	}
}

// same demands that the tree is as it was in the picture want.
func (r *rig) same(when string, want treecmp.Picture) treecmp.Picture {
	r.t.Helper()
	got := r.picture(r.tree.root)
	ds := treecmp.Diff(want, got, treecmp.Options{AnyNlink: r.o.CountsLayers, HoleSlack: holeSlack})
	if len(ds) > 0 {
		r.t.Fatalf("%s: the tree is not what it was:\n%v", when, ds)
	}
	return got
}

func (r *rig) picture(dir string) treecmp.Picture {
	r.t.Helper()
	pic, err := treecmp.Take(dir)
	r.must("look at the tree", err)
	if leaks := pic.OverlayXattrs(); len(leaks) > 0 {
		r.t.Fatalf("attributes of overlayfs show in %q:\n%s", dir, strings.Join(leaks, "\n"))
	}
	return pic
}

func listing(ops []Op) string {
	var b strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&b, "  %v\n", op)
	}
	return b.String()
}

// keep remembers the state of layers: pic, and a copy of the plain directory.
func (r *rig) keep(layers []snapshot.LayerID, pic treecmp.Picture) {
	r.t.Helper()
	r.restorePlain()
	dir := filepath.Join(filepath.Dir(r.at.Plain), fmt.Sprintf("kept-%d", r.kept))
	r.kept++
	_, err := clone(r.plain.root, dir)
	r.must("copy the plain directory", err)
	k := key(layers)
	r.states[k] = &state{slices.Clone(layers), pic, dir}
	if !slices.Contains(r.order, k) {
		r.order = append(r.order, k)
	}
	r.tell("keep %s", r.names(layers))
}

func key(layers []snapshot.LayerID) string {
	s := make([]string, len(layers))
	for i, l := range layers {
		s[i] = string(l)
	}
	return strings.Join(s, " ")
}

// tell notes what is done, for whoever reads of a failure.
func (r *rig) tell(format string, args ...any) {
	r.story = append(r.story, fmt.Sprintf(format, args...))
}

// names gives layers short names in the story: their number among all states.
func (r *rig) names(layers []snapshot.LayerID) string {
	names := []string{"base"}
	for i := range layers {
		n := slices.Index(r.order, key(layers[:i+1]))
		names = append(names, fmt.Sprintf("L%d", n))
	}
	return strings.Join(names, "+")
}

// lastLines is how much of the story a failure tells.
const lastLines = 60

// cleanUp unmounts what a driver that failed left on the tree, and makes
// everything removable.
func (r *rig) cleanUp() {
	if r.t.Failed() {
		lines := strings.Split(strings.Join(r.story, "\n"), "\n")
		r.t.Logf("the end of what was done (%d lines in all):\n%s",
			len(lines), strings.Join(lines[max(0, len(lines)-lastLines):], "\n"))
	}
	if r.d != nil {
		if err := r.d.Close(); err != nil {
			r.t.Errorf("close: %v", err)
		}
	}
	for _, m := range slices.Backward(r.mounts()) {
		if err := unix.Unmount(m, unix.UMOUNT_NOFOLLOW); err != nil {
			r.t.Errorf("unmount %q: %v", m, err)
		}
	}
	for _, dir := range []string{r.at.Tree, r.at.State, filepath.Dir(r.at.Plain)} {
		if err := clearFlags(dir); err != nil {
			r.t.Errorf("clear flags: %v", err)
		}
	}
}

// mounts are those on the tree and in the driver's state.
func (r *rig) mounts() []string {
	r.t.Helper()
	var all []string
	for _, dir := range []string{r.at.State, r.at.Tree} {
		mounts, err := testns.MountsBelow(dir)
		if err != nil {
			r.t.Error(err)
		}
		all = append(all, mounts...)
	}
	return all
}
