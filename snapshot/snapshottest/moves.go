package snapshottest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// push does what a caller does before a command: if anything has changed, the
// open layer becomes a layer and a new one goes on top. It tells whether it did.
func (r *rig) push() bool {
	r.t.Helper()
	below := r.view.Layers
	layers := r.seal()
	if len(layers) == len(below) {
		return false
	}
	r.show(layers, r.states[key(layers)].tree)
	r.checkChanges(below, layers[len(below):])
	return true
}

// seal asks whether the view is dirty and compares the answer. It returns the
// layers that make up the tree as it is now, and keeps that state.
func (r *rig) seal() []snapshot.LayerID {
	r.t.Helper()
	if r.view.Open == "" {
		return nil
	}
	now := r.picture(r.tree.root)
	changed := len(treecmp.Diff(r.clean, now, treecmp.Options{HoleSlack: holeSlack})) > 0
	dirty, err := r.d.Dirty(r.ctx(), r.view)
	r.must("Dirty", err)
	switch {
	case changed && !dirty:
		r.t.Fatalf("Dirty is false, but this has changed since the view was shown:\n%v",
			treecmp.Diff(r.clean, now, treecmp.Options{}))
	case dirty && r.looked:
		r.t.Fatal("Dirty is true, but nothing was done since the view was shown")
	}
	if !dirty {
		return slices.Clone(r.view.Layers)
	}
	layers := append(slices.Clone(r.view.Layers), r.view.Open)
	if s := r.states[key(layers)]; s == nil || len(treecmp.Diff(s.tree, now, treecmp.Options{})) > 0 {
		r.keep(layers, now)
		r.checkChanges(r.view.Layers, layers[len(layers)-1:])
		r.checkChanges(nil, layers)
	}
	return layers
}

// goTo shows the layers of a state that was kept, as a rollback or a redo does:
// to no layers by hiding. What is in the open layer is kept as a state of its
// own. It demands the tree of then.
func (r *rig) goTo(layers []snapshot.LayerID) {
	r.t.Helper()
	r.seal()
	s := r.states[key(layers)]
	if s == nil {
		r.t.Fatalf("no state %v", layers)
	}
	r.behind = s
	if len(layers) == 0 && !r.o.held {
		r.hide()
		r.same("after Hide", s.tree)
	} else {
		r.show(layers, s.tree)
	}
}

// restorePlain makes the plain directory what it was at the state that was gone
// to, if it is not that yet.
func (r *rig) restorePlain() {
	r.t.Helper()
	s := r.behind
	if s == nil {
		return
	}
	r.behind = nil
	r.must("clear flags", clearFlags(r.plain.root))
	r.must("remove the plain directory", os.RemoveAll(r.plain.root))
	_, err := clone(s.plain, r.plain.root)
	r.must("restore the plain directory", err)
	r.noteFiles()
}

// noteFiles notes which files are below the open layer.
func (r *rig) noteFiles() {
	r.t.Helper()
	switch {
	case r.view.Open == "":
		r.plain.hidden()
	case r.behind == nil:
		r.must("note files", r.plain.shown(r.plain.root))
	}
}

// rollback drops n layers, after the open one if it is dirty.
func (r *rig) rollback(n int) {
	r.t.Helper()
	layers := r.seal()
	if n > len(layers) {
		r.t.Fatalf("rollback of %d of %d layers", n, len(layers))
	}
	r.goTo(layers[:len(layers)-n])
}

// show shows layers with a new open layer, and demands the tree want.
func (r *rig) show(layers []snapshot.LayerID, want treecmp.Picture) {
	r.t.Helper()
	r.tell("show %s", r.names(layers))
	v := snapshot.View{Layers: slices.Clone(layers), Open: snapshot.NewLayerID()}
	tr, err := r.d.Show(r.ctx(), v)
	r.must("Show", err)
	if !tr.Swapped {
		r.t.Fatal("Show of a new view says that it did not swap")
	}
	if tr.Late {
		r.t.Fatal("Show says that somebody wrote late, but nobody did")
	}
	if r.o.LosesFlags && slices.Contains(layers, r.view.Open) {
		want = r.loseFlags(want)
		if s := r.states[key(layers)]; s != nil {
			s.tree = want
		}
	}
	r.shows(v, want)
}

// shows notes that v has been shown, and demands the tree want.
func (r *rig) shows(v snapshot.View, want treecmp.Picture) {
	r.t.Helper()
	r.view, r.looked = v, true
	r.wantShown(v.Open)
	r.clean = r.same("after Show", want)
	r.noteFiles()
}

// loseFlags takes away the flags that were set since the view was shown: from
// the plain directory too, and from the picture that it returns.
func (r *rig) loseFlags(pic treecmp.Picture) treecmp.Picture {
	r.t.Helper()
	pic = maps.Clone(pic)
	for path, e := range pic {
		const lost = flagImmutable | flagAppend
		set := e.Flags &^ r.clean[path].Flags & lost
		if set == 0 {
			continue
		}
		e.Flags &^= set
		pic[path] = e
		r.must("lose flags", setFlags(r.plain.root, Op{Path: path, N: int64(e.Flags)}))
	}
	return pic
}

// hide makes the tree a plain directory.
func (r *rig) hide() {
	r.t.Helper()
	r.tell("hide")
	r.must("Hide", r.d.Hide(r.ctx()))
	r.view = snapshot.View{}
	r.wantShown("")
	if mounts := r.mounts(); len(mounts) > 0 {
		r.t.Fatalf("after Hide these are still mounted: %q", mounts)
	}
	r.noteFiles()
}

// reopen closes the driver and opens a new one on the same state, as a new
// process would. The tree stays.
func (r *rig) reopen() {
	r.t.Helper()
	r.tell("reopen")
	before := r.picture(r.tree.root)
	r.must("Close", r.d.Close())
	r.same("after Close", before)
	r.d = r.open(r.t, r.at.Tree, r.at.State)
	r.wantShown(r.view.Open)
	r.same("after reopening", before)
	if r.view.Open != "" {
		r.showAgain()
	}
}

// showAgain shows the view that is shown already, which must change nothing.
func (r *rig) showAgain() {
	r.t.Helper()
	before := r.picture(r.tree.root)
	tr, err := r.d.Show(r.ctx(), r.view)
	r.must("Show again", err)
	if tr.Swapped {
		r.t.Fatal("Show of the view that is shown says that it swapped")
	}
	r.wantShown(r.view.Open)
	r.same("after showing the same view again", before)
}

func (r *rig) wantShown(want snapshot.LayerID) {
	r.t.Helper()
	got, err := r.d.Shown(r.ctx())
	r.must("Shown", err)
	if got != want {
		r.t.Fatalf("Shown: want %q, got %q", want, got)
	}
}

// sweep goes through all states that were kept, newest first and back, then
// ends hidden with base as it was. No sealed layer may have changed.
func (r *rig) sweep() {
	r.t.Helper()
	keys := slices.Clone(r.order)
	for _, k := range slices.Backward(keys) {
		r.goTo(r.states[k].layers)
	}
	for _, k := range keys {
		r.goTo(r.states[k].layers)
		r.checkState(r.states[k])
	}
	r.goTo(nil)
}

// clearFlags takes the flags away that forbid removing.
func clearFlags(dir string) error {
	return filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() && !d.Type().IsRegular() {
			return err
		}
		err = setFlags("/", Op{Path: path})
		return ignoreUnsupported(err)
	})
}
