package fallback

import (
	"context"
	"slices"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Committer = (*Driver)(nil)

// Settle has nothing to do: no layer refers to another.
func (d *Driver) Settle(context.Context, []snapshot.LayerID) (snapshot.LayerID, error) {
	return "", nil
}

// Commit takes layers off the bottom of the view: the tree has had what they did
// all along, and what it was before is given up. See snapshot.Committer.
func (d *Driver) Commit(ctx context.Context, layers []snapshot.LayerID, _ func(snapshot.Progress)) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if d.ix == nil || d.ix.view.hidden || len(layers) == 0 {
		return nil
	}
	v := d.ix.view.View
	if n := len(layers); len(v.Layers) < n || !slices.Equal(v.Layers[:n], layers) {
		return nil // done before
	}
	crash.Point("fallback.commit")
	v.Layers = slices.Clone(v.Layers[len(layers):])
	if err := d.commit(&tx{view: &shown{View: v}}, true); err != nil {
		return err
	}
	crash.Point("fallback.committed")
	return nil
}
