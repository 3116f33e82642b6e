package fallback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// Shown is what the last Show or Hide left. The tree is a plain directory in
// any case, so it says the same in every process.
func (d *Driver) Shown(ctx context.Context) (snapshot.LayerID, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	if d.ix == nil || d.ix.view.hidden {
		return "", nil
	}
	return d.ix.view.Open, nil
}

// Show makes the tree show v. When v has the layers of the tree's present view
// and its open layer on top, only a note is made. Else layers are undone and
// redone in place, all or nothing; what was written to the tree since the last
// Dirty goes into the old open layer first, and Late says so. The first Show
// copies base.
func (d *Driver) Show(ctx context.Context, v snapshot.View) (t snapshot.Transition, err error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return t, err
	}
	defer leave()
	if err := d.adopt(v); err != nil {
		return t, err
	}
	if d.ix != nil && d.ix.view.is(v) {
		return t, nil
	}
	root, err := d.root()
	if err != nil {
		return t, err
	}
	defer closing(root.fd, &err)
	switch {
	case d.ix == nil:
		err = d.baseline(ctx, root)
	case d.ix.view.hidden:
		err = d.renew(ctx, root)
	}
	if err != nil {
		return t, err
	}
	late, err := d.change(ctx, root, shown{View: v})
	if err != nil {
		return t, err
	}
	d.forgetLayers()
	return snapshot.Transition{Swapped: true, Late: late}, nil
}

// adopt takes v's layers for those of the view that is shown, if v is that view:
// its open layer names it, and layers below may have been folded since.
func (d *Driver) adopt(v snapshot.View) error {
	if d.ix == nil || d.ix.view.hidden || d.ix.view.Open != v.Open || d.ix.view.is(v) {
		return nil
	}
	for _, id := range v.Layers {
		if _, err := d.layer(id); err != nil {
			return err
		}
	}
	return d.commit(&tx{view: &shown{View: v}}, false)
}

// baseline copies base into the store. The index is what makes it count.
func (d *Driver) baseline(ctx context.Context, root beneath) (err error) {
	d.ix = &index{
		root: &node{entry: entry{mode: unix.S_IFDIR}}, tree: d.opt.Tree, filter: d.opt.Exclude,
		view: shown{hidden: true},
	}
	defer func() {
		if err == nil {
			return
		}
		d.ix = nil
		if durable.IsPublished(err) { // the index stands: it must go before what it names does
			if e := os.Remove(d.at("index")); e != nil {
				err = errors.Join(err, e)
				return
			}
		}
		err = errors.Join(err, d.store.forget())
	}()
	d.bar.begin("scan", 0, 0)
	s, err := walk(ctx, root, ".", nil, &d.filter, d.bar, nil)
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	if err := d.checkRoom(s); err != nil {
		return err
	}
	t, err := d.gather(ctx, s, "", stored)
	if err != nil {
		return err
	}
	d.warn(t.changes)
	d.ix.apply(t.changes)
	d.ix.link, d.ix.stored = t.link, d.store.bytes
	if err := d.store.settle(); err != nil {
		return fmt.Errorf("sync objects: %w", err)
	}
	d.ix.pack = d.store.next
	if err := d.ix.save(d.at("index")); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	d.seen, err = d.indexID()
	return err
}

// renew takes what happened to a plain directory, of which no layer tells, as
// base.
func (d *Driver) renew(ctx context.Context, root beneath) error {
	if err := d.capture(ctx, root, "", stored); err != nil {
		return err
	}
	if slices.Equal(d.ix.filter, d.opt.Exclude) {
		return nil
	}
	d.ix.filter = d.opt.Exclude
	return d.compact(true)
}

// Hide undoes every layer, as Show does, and notes that the tree is nobody's.
// The copies are kept, so that the next Show need not copy base again.
func (d *Driver) Hide(ctx context.Context) (err error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if d.ix == nil || d.ix.view.hidden {
		return nil
	}
	root, err := d.root()
	if err != nil {
		return err
	}
	defer closing(root.fd, &err)
	_, err = d.change(ctx, root, shown{hidden: true})
	return err
}

// Dirty scans the tree, and captures what has changed since the last scan in
// v.Open, durably. It says whether that layer now holds anything. Of a view that
// is not shown it only says that. What Note has left out it stores first.
func (d *Driver) Dirty(ctx context.Context, v snapshot.View) (dirty bool, err error) {
	return d.look(ctx, v, stored)
}

// Note is Dirty without a copy of what is new. See snapshot.Noter.
func (d *Driver) Note(ctx context.Context, v snapshot.View) (dirty bool, err error) {
	return d.look(ctx, v, noted)
}

func (d *Driver) look(ctx context.Context, v snapshot.View, how depth) (dirty bool, err error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	if err := d.adopt(v); err != nil {
		return false, err
	}
	if d.ix != nil && d.ix.view.is(v) {
		root, err := d.root()
		if err != nil {
			return false, err
		}
		defer closing(root.fd, &err)
		if err := d.capture(ctx, root, v.Open, how); err != nil {
			return false, err
		}
	}
	l, err := d.layer(v.Open)
	if err != nil {
		return false, err
	}
	return len(l.changes) > 0, nil
}

// Holders is always empty: nothing that a process holds makes Show fail. What
// it costs such a process is told in docs/copy-driver.md.
func (d *Driver) Holders(context.Context) ([]snapshot.Holder, error) { return nil, nil }

// Sync writes out the tree's filesystem, and the state's where that is another.
func (d *Driver) Sync(context.Context) error {
	a, err := os.Stat(d.opt.Tree)
	if err != nil {
		return err
	}
	b, err := os.Stat(d.opt.State)
	if err != nil {
		return err
	}
	if err := durable.SyncFilesystem(d.opt.Tree); err != nil || sameDevice(a, b) {
		return err
	}
	return durable.SyncFilesystem(d.opt.State)
}

// Depth counts v's layers. There is no limit: nothing is stacked.
func (d *Driver) Depth(v snapshot.View) (depth, limit int) { return len(v.Layers) + 1, 0 }
