package overlay

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// writeOutMost is how many entries of a layer WriteOut looks at: with more, one
// syncfs is quicker than the writing of one file after the other.
const writeOutMost = 32

var _ snapshot.Orderer = (*Driver)(nil)

// Ordered tells whether the layers' filesystem has one journal.
func (d *Driver) Ordered() bool {
	if d.ordered == nil {
		is := durable.Ordered(d.layers)
		d.ordered = &is
	}
	return *d.ordered
}

// WriteOut writes the contents of a small layer, open or sealed.
func (d *Driver) WriteOut(_ context.Context, id snapshot.LayerID, files ...string) (bool, error) {
	if !d.Ordered() {
		return false, nil
	}
	left := writeOutMost
	for _, sub := range []string{"u", "s"} {
		err := filepath.WalkDir(d.dir(id, sub), func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if left--; left < 0 {
				return errMany
			}
			if e.Type().IsRegular() {
				files = append(files, name)
			}
			return nil
		})
		if errors.Is(err, errMany) {
			return false, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
	}
	return true, durable.WriteOut(files...)
}

var errMany = errors.New("too many entries")
