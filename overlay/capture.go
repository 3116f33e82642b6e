package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sync/errgroup"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Sealer = (*Driver)(nil)

// Capture copies out of a live upper what has changed in it since it was looked
// at last. See snapshot.Sealer, and "Sealing" in docs/design.md.
//
// The index beside the open layer says which entries were the same in both
// states, by their inode and change time. It saves work and decides nothing
// else: what it does not vouch for is compared. So it may be old, or lost.
func (d *Driver) Capture(ctx context.Context, v snapshot.View, layers []snapshot.LayerID, into snapshot.LayerID, o snapshot.CaptureOptions) (found snapshot.Captured, err error) {
	d.indexMu.Lock()
	defer d.indexMu.Unlock()
	if err := d.joinShown(ctx, []snapshot.LayerID{v.Open}, v.Layers); err != nil {
		return found, err
	}
	c, err := d.newCapture(ctx, v, layers, into, o)
	if err != nil {
		return found, err
	}
	defer c.close()
	todo, err := c.scan()
	if err != nil || todo == nil {
		return found, err
	}
	err = c.make(todo)
	if errors.Is(err, errDiffers) {
		delete(d.indexes, v.Open) // half brought up to date
		return snapshot.Captured{Differs: true}, nil
	}
	if err == nil && into != "" {
		err = c.publish()
	}
	if err != nil {
		delete(d.indexes, v.Open) // in doubt
		return found, errors.Join(err, d.toTrash(c.aside))
	}
	if found.Differs = c.changed; !c.more {
		found.Counts = &c.counts
	}
	return found, nil
}

// errDiffers ends a capture that is only to tell whether anything differs.
var errDiffers = errors.New("differs")

// A capture is one call of Capture.
type capture struct {
	ctx     context.Context
	d       *Driver
	only    func(string) bool
	ix      *upperIndex
	clock   stamp
	after   *merged // what is shown; the live upper is its layer 0
	before  *merged // what the layers show
	v       snapshot.View
	layers  []snapshot.LayerID
	indexed bool // the kernel keeps an index of the live upper's files

	into    snapshot.LayerID
	aside   string // the layer while it is being made
	changed bool
	counts  snapshot.Counts
	more    bool                // than counts tells: only Changes can tell
	blind   bool                // nothing was known, and the layers may have anything of the upper's
	moved   map[identity]string // directories of the index by identity: their paths
	origins origins
	todo    *todo
	arrived []identity // directories that are known now
	grouping
	copies map[inode]string // files that were copied: the first copy
	shells map[inode]string // and of those of which only the attributes were
	buf    []byte
	beside errgroup.Group // copies files while the next are compared
}

// besideMost is how many files are copied at a time: more than processors, for who
// compares is not to wait for one.
const besideMost = 8

func (d *Driver) newCapture(ctx context.Context, v snapshot.View, layers []snapshot.LayerID, into snapshot.LayerID, o snapshot.CaptureOptions) (*capture, error) {
	clock, err := clockNow()
	if err != nil {
		return nil, err
	}
	c := &capture{
		ctx: ctx, d: d, only: o.Only, clock: clock, v: v, layers: layers, into: into,
		aside: filepath.Join(d.layers, "capture"), copies: map[inode]string{}, shells: map[inode]string{}, buf: make([]byte, 32<<10),
	}
	c.beside.SetLimit(besideMost)
	if c.only == nil {
		c.only = func(string) bool { return true }
	}
	_, err = os.Lstat(d.indexDir(v.Open))
	c.indexed = err == nil
	c.ix = d.index(v.Open)
	// Layers that are gone, by a commit say, are in others or in base: of what the upper
	// has there is more than what it stands on.
	c.blind = !c.ix.holdsFor(layers)
	return c, nil
}

func (c *capture) close() {
	for _, m := range []*merged{c.after, c.before} {
		if m != nil {
			m.close()
		}
	}
}

// views opens both states. The layers that they have in common are stacked
// alike, so that directories which are the same are the same inodes.
func (c *capture) views() (err error) {
	common := 0
	for common < min(len(c.v.Layers), len(c.layers)) && c.v.Layers[common] == c.layers[common] {
		common++
	}
	below := c.d.units(c.layers[:common])
	live := unit{c.d.dir(c.v.Open, ""), 1} // alone: it is in no run
	if c.after, err = c.d.viewOf(1, []unit{live}, c.d.units(c.v.Layers[common:]), below); err != nil {
		return err
	}
	if c.before, err = c.d.viewOf(0, c.d.units(c.layers[common:]), below); err != nil {
		return err
	}
	c.after.reads = true
	c.before.reads = true
	return nil
}

// viewOf opens base and units, newest first.
func (d *Driver) viewOf(split int, units ...[]unit) (v *merged, err error) {
	v = &merged{units: slices.Concat(units...), name: d.name, split: split}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	for _, u := range v.units {
		f, err := d.openUnit(u)
		if err != nil {
			return v, err
		}
		v.roots = append(v.roots, f)
	}
	base, err := d.openBase()
	if err != nil {
		return v, err
	}
	v.roots = append(v.roots, base)
	return v, nil
}

// make makes the layer aside.
func (c *capture) make(t *todo) error {
	if c.into != "" {
		if err := c.d.toTrash(c.aside); err != nil {
			return err
		}
	}
	if err := c.views(); err != nil {
		return err
	}
	err := c.all(t)
	if e := c.beside.Wait(); err == nil {
		err = e
	}
	return err
}

// all goes through what is to be done.
func (c *capture) all(t *todo) error {
	x, err := c.after.root()
	if err != nil {
		return err
	}
	y, err := c.before.root()
	if err != nil {
		return err
	}
	if c.origins = (origins{}); c.ix.Root != nil {
		c.origins.collect(c.ix.Root, ".")
	}
	c.todo = t
	if err := c.complete(); err != nil {
		return err
	}
	if err := c.learnRoot(x, t); err != nil {
		return err
	}
	top := &spot{c: c, x: x, merged: true}
	defer top.close()
	if err := c.inside(x, y, t, c.ix.Root, top, "."); err != nil {
		return err
	}
	if (t.all || t.self) && c.only(".") {
		if err := c.attributes(x, y, top); err != nil {
			return err
		}
	}
	for _, id := range c.arrived {
		delete(c.ix.Placed, id)
	}
	return top.finish()
}

// learnRoot is learn for the tree's root.
func (c *capture) learnRoot(x *entry, t *todo) error {
	c.blind, c.ix.dirty = t.all && (c.blind || !slices.Equal(c.v.Layers, c.layers)), true
	if x.layer != 0 {
		c.ix.Root = nil
		return nil
	}
	st, err := statxAt(int(x.f.Fd()), "")
	if err != nil {
		return err
	}
	n := knownOf(&st, c.clock)
	n.Racy = n.Racy || !c.only(".")
	if !t.all {
		n.Kids = c.ix.Root.Kids
	}
	c.ix.Root = n
	return nil
}

// publish gives the layer its name, and then keeps what was learnt. Killed in
// between, the next capture compares what the index does not know.
func (c *capture) publish() error {
	if c.changed {
		for _, sub := range []string{"w", "s", "u"} {
			if err := os.Mkdir(filepath.Join(c.aside, sub), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
		crash.Point("overlay.captured")
		if err := os.Rename(c.aside, c.d.dir(c.into, "")); err != nil {
			return fmt.Errorf("publish layer: %w", err)
		}
		crash.Point("overlay.published")
	}
	if top := last(append(c.layers, c.made()...)); c.ix.Top != top {
		c.ix.Top, c.ix.dirty = top, true
	}
	return c.ix.save()
}

func (c *capture) made() []snapshot.LayerID {
	if c.changed {
		return []snapshot.LayerID{c.into}
	}
	return nil
}
