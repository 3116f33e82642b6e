// Package overlay is the driver that keeps layers with the kernel's overlayfs
// and shows them by mounting over the tree's own path.
//
// A swap builds the new mount aside, puts it beneath the old one and takes the
// old one away, so that a path lookup sees the old view or the new one. It is
// not for hosts without overlayfs or without root: see package fallback.
package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// Name is the driver's name in the record.
const Name = "overlay"

// Options say where a driver works.
type Options struct {
	Tree  string // absolute and free of symbolic links
	State string // the driver's own directory, made if need be; not inside Tree
	// Plain forces the plain layout, for tests.
	Plain bool
	// Old forces the ways of kernels before 6.5, for tests.
	Old bool
	// MergeAbove makes Maintain and Show merge when there are more units below the
	// newest layer, for tests.
	MergeAbove int
}

// Driver shows one tree. See snapshot.Driver for the contract.
type Driver struct {
	tree   string
	layers string // the directory that holds one directory a layer
	// name is the tree's name below the directory that the overlay covers; ""
	// in the plain layout. See docs/design.md, "Two layouts".
	name string
	has  features

	shown   shownMount // what statx said of the mount whose source was read last
	ready   ready
	runs    runs
	below   below
	gone    sync.WaitGroup   // closing what Show replaced
	rest    []func()         // see leaveRest
	views   *os.File         // see noteView
	ordered *bool            // see Ordered
	bound   snapshot.LayerID // see splitAt

	indexMu sync.Mutex                       // Capture may be asked beside other methods
	indexes map[snapshot.LayerID]*upperIndex // of uppers that were captured from

	merging  merging
	standing standing
	held     remembered
	alone    alone
	watching atomic.Pointer[watch]

	mergeAbove, mergeLeast, mergeMost int // tests change them
	patience, freezePatience          time.Duration
}

type shownMount struct {
	id   uint64
	open snapshot.LayerID
}

var _ snapshot.Driver = (*Driver)(nil)

// New prepares a driver. It mounts nothing.
func New(o Options) (*Driver, error) {
	d := &Driver{tree: o.Tree, layers: filepath.Join(o.State, "layers"), has: allFeatures(), mergeAbove: mergeAbove, mergeLeast: mergeLeast, mergeMost: mergeMost, patience: mergePatience, freezePatience: freezePatience}
	if o.MergeAbove > 0 {
		d.mergeAbove, d.mergeLeast, d.mergeMost = o.MergeAbove, 2, o.MergeAbove+1
	}
	if o.Old {
		d.has = features{}
	}
	for _, sub := range []string{"trash", "aside"} {
		if err := os.MkdirAll(filepath.Join(d.layers, sub), 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	d.name, err = layout(d.layers, o.Tree, o.Plain)
	return d, err
}

// layout decides on the first call whether the overlay covers the tree or its
// parent, and keeps the answer, for the layers of one layout are not layers of
// the other. An overlay of the parent needs the layers outside that parent
// (the kernel refuses overlapping layers with ELOOP) and the tree on the
// parent's own mount.
func layout(layers, tree string, plain bool) (name string, err error) {
	file := filepath.Join(layers, "layout")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		b = []byte("subtree\n")
		if plain || !subtreeFits(layers, tree) {
			b = []byte("plain\n")
		}
		err = durable.Write(file, b)
	}
	switch {
	case err != nil:
		return "", err
	case string(b) == "subtree\n":
		return filepath.Base(tree), nil
	case string(b) == "plain\n":
		return "", nil
	}
	return "", &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%s names a layout that this deployx does not know: %q", file, b),
		Hint: "use the deployx that wrote it; nothing was touched",
	}
}

func subtreeFits(layers, tree string) bool {
	parent := filepath.Dir(tree)
	return !within(layers, parent) && sameMount(tree, parent)
}

// within holds if path is dir or lies below it. Both are absolute and clean.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

func sameMount(a, b string) bool {
	x, errx := mountID(a)
	y, erry := mountID(b)
	return errx == nil && erry == nil && x == y
}

// Name is "overlay".
func (d *Driver) Name() string { return Name }

// Layout names the layout of this tree, for doctor and status.
func (d *Driver) Layout() string {
	if d.name == "" {
		return "plain"
	}
	return "subtree"
}

// Depth is what is stacked below the open layer, base included: layers that have been
// merged count as one. Where a merge fails it can be more than the limit (docs/design.md,
// "Depth").
func (d *Driver) Depth(v snapshot.View) (depth, limit int) {
	return len(d.units(v.Layers)) + 1, d.mergeMost + 1
}

// Sync flushes the filesystem that holds the layers, which is the record's too.
func (d *Driver) Sync(context.Context) error { return durable.SyncFilesystem(d.layers) }

// Close gives up what was prepared. The mount stays.
func (d *Driver) Close() error {
	d.gone.Wait()
	if d.views != nil {
		d.views.Close() //nolint:errcheck // derived
		d.views = nil
	}
	return errors.Join(d.giveUp(), d.below.close())
}

// letGo closes mounts off the caller's path: with the last handle of a mount the
// kernel takes it apart, and waits for all processors.
func (d *Driver) letGo(mounts ...*os.File) {
	d.gone.Go(func() {
		for _, m := range mounts {
			m.Close() //nolint:errcheck // a mount handle
		}
	})
}

// leaveRest does what a swap has left beside what comes next, newest first. It is one
// goroutine's, and begins when the swap is over: where two mounts are taken apart at
// once, one waits for the other.
func (d *Driver) leaveRest() {
	rest := d.rest
	if d.rest = nil; len(rest) == 0 {
		return
	}
	d.gone.Go(func() {
		for _, f := range slices.Backward(rest) {
			f()
		}
	})
}

// Shown finds the open layer of the mount on the tree. The mount's source says
// it; between two looks statx tells whether it is still the same mount. Before Linux
// 6.8 it cannot: another process's second swap gives its mount the id of the one
// that the first took away. There the source is read each time.
func (d *Driver) Shown(context.Context) (snapshot.LayerID, error) {
	id, err := d.has.mountID(d.tree)
	if err != nil {
		return "", err
	}
	if d.has.uniqueID && d.shown.id == id {
		return d.shown.open, nil
	}
	open, err := topSource(d.tree)
	if err != nil {
		return "", err
	}
	d.shown = shownMount{id, open}
	return open, nil
}

// mountID identifies the mount that path, a directory, lies on: among all since
// boot with uniqueID, else among those that are there now.
func mountID(path string) (uint64, error) {
	f := allFeatures()
	return f.mountID(path)
}

func (f *features) mountID(path string) (uint64, error) {
	mask := unix.STATX_MNT_ID
	if f.uniqueID {
		mask |= unix.STATX_MNT_ID_UNIQUE
	}
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, mask, &st)
	f.uniqueID = f.uniqueID && (err != nil || st.Mask&unix.STATX_MNT_ID_UNIQUE != 0)
	if err != nil {
		return 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return 0, fmt.Errorf("%q is not a directory", path)
	}
	return st.Mnt_id, nil
}

// LayoutFor tells in words which layout a tree has, or would get with its
// files in state.
func LayoutFor(tree, state string) string {
	if isPlain(tree, state) {
		return "plain (the layers lie below the tree's parent, or the tree is a mount: the kernel notes each swap in its log)"
	}
	return "subtree (the overlay covers the tree's parent and shows the tree; swaps are silent)"
}

func isPlain(tree, state string) bool {
	layers := filepath.Join(state, "layers")
	b, err := os.ReadFile(filepath.Join(layers, "layout"))
	if err != nil {
		return !subtreeFits(layers, tree)
	}
	return string(b) == "plain\n"
}
