package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Committer = (*Driver)(nil)

// settledMark is a file in a layer that Settle made.
const settledMark = "settled"

// Settle looks for what was moved, and if there is any makes a layer in which
// nothing refers to base by another path. See snapshot.Committer.
func (d *Driver) Settle(ctx context.Context, layers []snapshot.LayerID) (snapshot.LayerID, error) {
	if len(layers) == 0 {
		return "", nil
	}
	if len(layers) == 1 {
		if done, err := exists(d.dir(layers[0], settledMark)); err != nil || done {
			return "", err
		}
	}
	r, err := d.reach()
	if err != nil {
		return "", err
	}
	defer r.close()
	if err := d.refuseReadOnly(r); err != nil {
		return "", err
	}
	view, err := d.viewBy(r, layers)
	if err != nil {
		return "", err
	}
	defer view.close()
	if moved, err := view.moved(ctx, r.joined); err != nil || !moved {
		return "", err
	}
	m := merge{ctx: ctx, below: view.below(), split: view.split, by: r.layers, settled: true, apart: !r.joined}
	aside, err := d.aside(&m, func(top string) error { return m.together(view, top) })
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(aside, settledMark), nil, 0o600); err != nil {
		return "", errors.Join(err, d.toTrash(aside))
	}
	crash.Point("overlay.commit.settled")
	id := snapshot.NewLayerID()
	return id, os.Rename(aside, d.dir(id, ""))
}

// refuseReadOnly refuses to commit to what takes no changes.
func (d *Driver) refuseReadOnly(r *reach) error {
	if err := unix.Faccessat(int(r.base.Fd()), ".", unix.W_OK, 0); !errors.Is(err, unix.EROFS) {
		return nil
	}
	return &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("what lies below the layers of %q is on a read-only filesystem", d.tree),
		Hint: "commit once it can be written (mount -o remount,rw); until then everything else goes on",
	}
}

// moved tells whether the change refers to base by another path: a directory
// with a redirect, or a metacopy file with one; where base is not joined with the
// layers, any metacopy file, for its bytes cannot be replaced in one step. It looks
// at the layers as they are, so what a later layer has removed counts too.
func (v *merged) moved(ctx context.Context, joined bool) (bool, error) {
	for _, root := range v.roots[:v.split] {
		if root == nil {
			continue
		}
		if found, err := redirected(ctx, root, joined); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

func redirected(ctx context.Context, dir *os.File, joined bool) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	f, err := openAt(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read only
	names, err := f.ReadDir(-1)
	if err != nil {
		return false, err
	}
	for _, n := range names {
		t := target{f, n.Name()}
		switch {
		case n.IsDir() && !t.has("redirect"):
		case n.IsDir():
			return true, nil
		case n.Type().IsRegular():
			if metacopy, redirect := t.refers(); metacopy && (redirect || !joined) {
				return true, nil
			}
		}
		if !n.IsDir() {
			continue
		}
		sub, err := openAt(int(f.Fd()), n.Name(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return false, err
		}
		found, err := redirected(ctx, sub, joined)
		if err := errors.Join(err, sub.Close()); err != nil || found {
			return found, err
		}
	}
	return false, nil
}

// has tells whether t has one of overlayfs's own attributes. If it cannot be
// told it has, which costs time and nothing else.
func (t target) has(name string) bool {
	err := t.probeXattr(private + name)
	return !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP)
}

// refers tells whether a file has its bytes below, and whether by another path. If
// it cannot be told it has, as above.
func (t target) refers() (metacopy, redirect bool) {
	var buf [512]byte
	n, err := t.listXattr(buf[:])
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return false, false
	case err != nil:
		return t.has("metacopy"), t.has("redirect")
	}
	names := buf[:n]
	return bytes.Contains(names, []byte(private+"metacopy\x00")), bytes.Contains(names, []byte(private+"redirect\x00"))
}

// Commit puts what layers hold into base. The mounted view has these layers
// above base, so that every path that is changed there is one that they shadow.
// See snapshot.Committer and docs/design.md, "Commit".
func (d *Driver) Commit(ctx context.Context, layers []snapshot.LayerID, progress func(snapshot.Progress)) error {
	if len(layers) == 0 {
		return nil
	}
	if err := d.splitAt(layers[len(layers)-1]); err != nil {
		return err
	}
	if err := d.refuseParted(ctx, layers); err != nil {
		return err
	}
	r, err := d.reach()
	if err != nil {
		return err
	}
	defer r.close()
	view, err := d.viewBy(r, layers)
	if err != nil {
		return err
	}
	defer view.close()
	above, err := d.covering(ctx, r, layers)
	if err != nil {
		return err
	}
	defer above.close()
	c := commit{ctx: ctx, reach: r, split: view.split, progress: progress, copies: map[inode]string{}}
	if c.siblings, err = d.siblingsOf(r, layers); err != nil {
		return err
	}
	if c.count(view) == 0 {
		return nil // nothing was changed, not even the root
	}
	err = d.loosen(ctx)
	if err == nil {
		err = c.all(view, above)
	}
	if err == nil {
		err = d.loosen(ctx) // what has been copied up meanwhile
	}
	if err != nil {
		return fmt.Errorf("commit to base: %w", errors.Join(err, d.refuseReadOnly(r)))
	}
	if c.lost {
		return changedMeanwhile(d.tree)
	}
	crash.Point("overlay.commit.applied")
	d.bound = ""
	if err := syncFilesystem(r.base); err != nil {
		return err
	}
	return d.toTrash(filepath.Join(d.layers, "copied"))
}

// splitAt keeps a layer and those above it from being stacked as one: a run of
// both would say of the layers below both what is no longer so when base has
// changed.
func (d *Driver) splitAt(top snapshot.LayerID) error {
	if d.bound == top {
		return nil
	}
	d.bound = top
	return d.giveUp() // what was prepared may stand on such a run
}

// refuseParted makes sure that what the tree shows does not stand on a run of
// committed and other layers.
func (d *Driver) refuseParted(ctx context.Context, layers []snapshot.LayerID) error {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return err
	}
	units, err := d.standsOn(open)
	if err != nil {
		return err
	}
	for _, u := range units {
		in := 0
		for _, id := range u.of {
			if slices.Contains(layers, id) {
				in++
			}
		}
		if in != 0 && in != len(u.of) {
			return d.mustShowAnew()
		}
	}
	return nil
}

func (d *Driver) mustShowAnew() error {
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("%q still shows layers in a way that needs base as it is", d.tree),
		Hint: "the view must be shown anew first",
	}
}

func changedMeanwhile(tree string) error {
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("%q has been changed while it was committed, in what is committed", tree),
		Hint: "what has changed must be sealed first",
	}
}

// A stood is a unit that the mounted view stands on, and its layers.
type stood struct {
	unit
	of []snapshot.LayerID
}

// standsOn lists what the mount with this open layer stands on, newest first.
func (d *Driver) standsOn(open snapshot.LayerID) (units []stood, err error) {
	b, err := os.ReadFile(d.dir(open, "below"))
	if err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(b)) {
		dir := filepath.Join(d.layers, "merged", name)
		of, err := readRun(dir)
		if errors.Is(err, fs.ErrNotExist) { // a layer
			dir, of, err = d.dir(snapshot.LayerID(name), ""), []snapshot.LayerID{snapshot.LayerID(name)}, nil
		}
		if err != nil {
			return nil, err
		}
		units = append(units, stood{unit{dir, len(of)}, of})
	}
	return units, nil
}

func syncFilesystem(dir *os.File) error {
	f, err := openAt(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return errors.Join(&fs.PathError{Op: "syncfs", Path: f.Name(), Err: err}, f.Close())
	}
	return f.Close()
}

// count finds how many entries the change has at the most.
func (c *commit) count(view *merged) int64 {
	for _, root := range view.roots[:view.split] {
		if root != nil {
			c.total += 1 + countBelow(root)
		}
	}
	return c.total
}

func countBelow(dir *os.File) (n int64) {
	f, err := openAt(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return 0
	}
	defer f.Close() //nolint:errcheck // read only
	names, err := f.ReadDir(-1)
	if err != nil {
		return 0
	}
	for _, e := range names {
		n++
		if !e.IsDir() {
			continue
		}
		if sub, err := openAt(int(f.Fd()), e.Name(), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW); err == nil {
			n += countBelow(sub)
			sub.Close() //nolint:errcheck // O_PATH
		}
	}
	return n
}
