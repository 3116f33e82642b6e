package snapshottest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deployx/internal/crash"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// naive is a driver that keeps a whole copy of the tree for each layer. It is
// what the suite is tested with; broken names a way in which it is wrong.
type naive struct {
	tree, state string
	view        snapshot.View
	broken      string
}

func openNaive(broken string) Open {
	return func(t *testing.T, tree, state string) snapshot.Driver {
		t.Helper()
		n := &naive{tree: tree, state: state, broken: broken}
		if err := n.load(); err != nil {
			t.Fatal(err)
		}
		return n
	}
}

// load reads what the tree shows; another driver may have changed that.
func (n *naive) load() error {
	b, err := os.ReadFile(filepath.Join(n.state, "view"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	n.view = snapshot.View{}
	return errors.Join(err, json.Unmarshal(b, &n.view))
}

func (n *naive) Shown(context.Context) (snapshot.LayerID, error) {
	if err := n.load(); err != nil {
		return "", err
	}
	return n.view.Open, nil
}

func (n *naive) Name() string                                       { return "naive" }
func (n *naive) Holders(context.Context) ([]snapshot.Holder, error) { return nil, nil }
func (n *naive) Sync(context.Context) error                         { return nil }
func (n *naive) Depth(v snapshot.View) (int, int)                   { return len(v.Layers) + 1, 1 << 20 }
func (n *naive) Close() error                                       { return nil }
func (n *naive) full(id snapshot.LayerID) string                    { return filepath.Join(n.state, "full-"+string(id)) }

func (n *naive) picture(layers []snapshot.LayerID) (treecmp.Picture, error) {
	return treecmp.Take(n.dir(layers))
}

func (n *naive) Discard(_ context.Context, id snapshot.LayerID) error {
	if n.broken == "keeps what is discarded" {
		return nil
	}
	return os.RemoveAll(n.full(id))
}

// dir is the copy of the tree as layers left it.
func (n *naive) dir(layers []snapshot.LayerID) string {
	if len(layers) == 0 {
		return filepath.Join(n.state, "base")
	}
	return n.full(layers[len(layers)-1])
}

func (n *naive) Show(_ context.Context, v snapshot.View) (snapshot.Transition, error) {
	torn := n.torn()
	if v.Open == n.view.Open && !torn && n.broken != "shows again" {
		return snapshot.Transition{}, nil
	}
	for _, id := range v.Layers {
		if _, err := os.Stat(n.full(id)); err != nil && n.broken != "shows what never was" {
			return snapshot.Transition{}, err
		}
	}
	if err := n.save(); err != nil {
		return snapshot.Transition{}, err
	}
	push := slices.Equal(v.Layers, append(slices.Clone(n.view.Layers), n.view.Open)) && !torn
	if !push || n.broken == "loses at push" {
		if err := n.restore(n.start(v)); err != nil {
			return snapshot.Transition{}, err
		}
	}
	if _, err := os.Stat(n.full(v.Open)); err != nil {
		if err := n.copyTo(n.full(v.Open)); err != nil {
			return snapshot.Transition{}, err
		}
	}
	return snapshot.Transition{Swapped: true}, n.become(v)
}

// start is the copy that v starts from.
func (n *naive) start(v snapshot.View) string {
	if _, err := os.Stat(n.full(v.Open)); err == nil {
		return n.full(v.Open)
	}
	if n.broken == "loses at push" {
		return n.dir(n.view.Layers)
	}
	if n.broken == "wrong order" && len(v.Layers) > 2 {
		return n.full(v.Layers[0])
	}
	return n.dir(v.Layers)
}

// save keeps the tree as it is under the name of the open layer, or as base.
func (n *naive) save() error {
	if n.torn() {
		return nil
	}
	if n.view.Open == "" {
		return n.copyTo(n.dir(nil))
	}
	if n.broken == "changes a sealed layer" && len(n.view.Layers) > 1 {
		if err := os.Chmod(n.full(n.view.Layers[0]), 0o700); err != nil {
			return err
		}
	}
	if n.broken == "forgets the open layer" {
		return nil
	}
	return n.copyTo(n.full(n.view.Open))
}

func (n *naive) become(v snapshot.View) error {
	crash.Point("naive: before view")
	n.view = v
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	tmp := filepath.Join(n.state, "view.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(n.state, "view")); err != nil {
		return err
	}
	return os.RemoveAll(n.state + "/torn")
}

// torn tells whether a process died while it was changing the tree: then the
// tree is not to be saved, but to be made anew.
func (n *naive) torn() bool {
	_, err := os.Stat(n.state + "/torn")
	return err == nil && n.broken != "does not see that it died"
}

func (n *naive) Hide(context.Context) error {
	if n.view.Open == "" && !n.torn() {
		return nil
	}
	if err := n.save(); err != nil {
		return err
	}
	if n.broken != "does not hide" {
		if err := n.restore(n.dir(nil)); err != nil {
			return err
		}
	}
	return n.become(snapshot.View{})
}

// copyTo replaces the copy dir by one of the tree, made aside.
func (n *naive) copyTo(dir string) error {
	tmp := dir + ".tmp"
	for _, d := range []string{tmp, dir} {
		if err := clearFlags(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if _, err := clone(n.tree, tmp); err != nil {
		return err
	}
	crash.Point("naive: copied")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// restore makes the tree what the copy dir is.
func (n *naive) restore(dir string) error {
	if err := os.WriteFile(n.state+"/torn", nil, 0o600); err != nil {
		return err
	}
	if err := clearFlags(n.tree); err != nil {
		return err
	}
	if n.broken == "forgets deletions" {
		_, err := overlayCopy(dir, n.tree)
		return err
	}
	root, err := treecmp.Take(n.tree)
	if err != nil {
		return err
	}
	names, err := os.ReadDir(n.tree)
	if err != nil {
		return err
	}
	for _, e := range names {
		crash.Point("naive: removing")
		if err := os.RemoveAll(filepath.Join(n.tree, e.Name())); err != nil {
			return err
		}
	}
	for name := range root["."].Xattrs {
		if err := unsetAttr(n.tree, name); err != nil {
			return err
		}
	}
	if _, err := clone(dir, n.tree); err != nil {
		return err
	}
	return n.damage(root["."])
}

func (n *naive) Dirty(_ context.Context, v snapshot.View) (bool, error) {
	switch n.broken {
	case "never dirty":
		return false, nil
	case "always dirty":
		return true, n.copyTo(n.full(v.Open))
	case "forgets the open layer":
		return true, nil
	}
	was, err := n.picture(v.Layers)
	if err != nil {
		return false, err
	}
	now, err := treecmp.Take(n.tree)
	if err != nil {
		return false, err
	}
	n.overlook(was, now)
	if len(treecmp.Diff(was, now, treecmp.Options{AnyNlink: true, HoleSlack: holeSlack})) == 0 {
		return false, nil
	}
	return true, n.copyTo(n.full(v.Open))
}

// overlook makes was like now in what a broken driver does not look at.
func (n *naive) overlook(was, now treecmp.Picture) {
	if n.broken == "root never dirty" {
		was["."] = now["."]
	}
	for path, e := range now {
		if n.broken == "dirty by size" && e.Size == was[path].Size && e.Mtime == was[path].Mtime {
			was[path] = e
		}
	}
}

func (n *naive) Changes(_ context.Context, below, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	was, err := n.picture(below)
	if err != nil {
		return err
	}
	now, err := n.picture(slices.Concat(below, layers))
	if err != nil {
		return err
	}
	all := difference(was, now)
	for _, path := range slices.Sorted(maps.Keys(all)) {
		c := all[path]
		if c.Kind == mayTell || n.broken == "tells no deletions" && c.Kind == snapshot.ChangeDeleted {
			continue
		}
		if n.broken == "other changes" {
			c.Mode ^= 1
		}
		if n.broken == "tells metadata as modified" && c.Kind == snapshot.ChangeMetadata {
			c.Kind = snapshot.ChangeModified
		}
		if err := visit(c); err != nil {
			return err
		}
	}
	return nil
}

func (n *naive) Open(_ context.Context, layers []snapshot.LayerID, path string) (io.ReadCloser, error) {
	root, err := os.OpenRoot(n.dir(layers))
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // only read
	if dir := filepath.Dir(path); n.broken != "opens through links" && dir != "." {
		if real, err := filepath.EvalSymlinks(filepath.Join(root.Name(), dir)); err != nil || real != filepath.Join(root.Name(), dir) {
			return nil, fs.ErrNotExist
		}
	}
	st, err := root.Lstat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&os.ModeSymlink != 0 {
		target, err := root.Readlink(path)
		return io.NopCloser(strings.NewReader(target)), err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a file")
	}
	if n.broken == "opens nothing" {
		return io.NopCloser(bytes.NewReader(nil)), nil
	}
	return root.Open(path)
}

func (n *naive) Layers(context.Context) ([]snapshot.LayerID, error) {
	names, err := filepath.Glob(n.full("*"))
	var ids []snapshot.LayerID
	for _, name := range names {
		ids = append(ids, snapshot.LayerID(strings.TrimPrefix(filepath.Base(name), "full-")))
	}
	return ids, err
}

func (n *naive) Usage(_ context.Context, id snapshot.LayerID) (u snapshot.Usage, err error) {
	pic, err := treecmp.Take(n.full(id))
	for _, e := range pic {
		u.Bytes += e.Size - e.Holes
		u.Inodes++
	}
	return u, err
}
