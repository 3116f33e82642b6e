package overlay

import (
	"context"
	"errors"
	"os"
	"slices"

	"deployx/snapshot"
)

// ready is a superblock that was made ahead of time: most of a Show's work,
// and all of it that dirties the disk, so that the sync in freeze finds nothing
// to write.
type ready struct {
	v snapshot.View
	m *os.File
}

var _ snapshot.Preparer = (*Driver)(nil)

// Prepare makes the layer and the superblock of v. The layer below it may still
// be open: in the subtree layout it is stacked by its s/, which is looked into
// only when the view is shown. The plain layout stacks the live upper itself
// and does not prepare.
func (d *Driver) Prepare(_ context.Context, v snapshot.View) error {
	if d.name == "" || d.ready.matches(v) || len(d.units(v.Layers)) > d.mergeMost { // too deep: Show will merge
		return nil
	}
	if err := d.giveUp(); err != nil {
		return err
	}
	if err := d.create(v); err != nil {
		return err
	}
	d.ready.v = v
	var err error
	d.ready.m, err = d.build(v)
	return err
}

func (r ready) matches(v snapshot.View) bool {
	return r.m != nil && r.v.Open == v.Open && slices.Equal(r.v.Layers, v.Layers)
}

// take hands out the superblock of v, if it is ready; nil otherwise.
func (d *Driver) take(v snapshot.View) (*os.File, error) {
	if !d.ready.matches(v) {
		if d.ready.v.Open == v.Open { // half prepared: the caller goes on with its directories
			m := d.ready.m
			if d.ready = (ready{}); m != nil {
				return nil, m.Close()
			}
			return nil, nil
		}
		return nil, d.giveUp()
	}
	m := d.ready.m
	d.ready = ready{}
	return m, nil
}

// forgetReady closes what was prepared with a layer that goes: a later view of
// the same name must not be shown by it, for it would write to the trash.
func (d *Driver) forgetReady(open snapshot.LayerID) error {
	if d.ready.v.Open != open || d.ready.m == nil {
		return nil
	}
	m := d.ready.m
	d.ready = ready{}
	return m.Close()
}

// giveUp closes what was prepared and not shown, and discards its layer.
func (d *Driver) giveUp() error {
	r := d.ready
	d.ready = ready{}
	var err error
	if r.m != nil {
		err = r.m.Close()
	}
	if r.v.Open != "" {
		err = errors.Join(err, d.Discard(context.Background(), r.v.Open))
	}
	return err
}
