package fallback

import (
	"context"
	"fmt"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Folder = (*Driver)(nil)

// Fold makes a layer of what several did together: what the first found and
// what the last left of each path. See snapshot.Folder.
func (d *Driver) Fold(ctx context.Context, layers []snapshot.LayerID) (snapshot.LayerID, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return "", err
	}
	defer leave()
	changes, err := d.sum(layers)
	if err != nil {
		return "", err
	}
	f := &layer{seq: d.ix.seq, changes: changes}
	for _, id := range layers {
		l, err := d.layer(id)
		if err != nil {
			return "", err
		}
		f.bytes += l.bytes
	}
	id := snapshot.NewLayerID()
	if err := f.save(d.layerPath(id)); err != nil {
		return "", fmt.Errorf("write floor: %w", err)
	}
	crash.Point("fallback.folded")
	d.layers[id] = f
	return id, nil
}
