package fallback

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Changes tells the net changes of layers. Each layer knows both sides of what
// it changed, so below is not looked at. A directory of which only the time
// differs is not told: an entry in it is.
func (d *Driver) Changes(ctx context.Context, _, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	all, err := d.sum(layers)
	d.forgetLayers()
	leave()
	if err != nil {
		return err
	}
	for i := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, told, err := d.tell(&all[i])
		if err != nil {
			return err
		}
		if !told {
			continue
		}
		if err := visit(c); err != nil {
			return err
		}
	}
	return nil
}

// sum joins layers, oldest first.
func (d *Driver) sum(layers []snapshot.LayerID) ([]change, error) {
	var s layer
	for _, id := range layers {
		l, err := d.layer(id)
		if err != nil {
			return nil, err
		}
		s.add(0, 0, slices.Clone(l.changes))
	}
	return s.changes, nil
}

// tell puts a change into the record's words.
func (d *Driver) tell(c *change) (out snapshot.Change, told bool, err error) {
	e := c.post
	if e == nil {
		e = c.pre
	}
	out = snapshot.Change{
		Path: c.path, Type: e.letter(), Mode: e.mode & 0o7777, UID: e.uid, GID: e.gid, Size: e.size,
	}
	if out.Kind, err = d.kindOf(c.pre, c.post); out.Kind == snapshot.ChangeType {
		out.Was = c.pre.letter()
	}
	return out, out.Kind != "", err
}

func (d *Driver) kindOf(a, b *entry) (snapshot.ChangeKind, error) {
	switch {
	case a == nil:
		return snapshot.ChangeAdded, nil
	case b == nil:
		return snapshot.ChangeDeleted, nil
	case a.kind() != b.kind():
		return snapshot.ChangeType, nil
	case a.isDir() && !a.sameOwnership(b):
		return snapshot.ChangeMetadata, nil
	case a.isDir():
		return "", nil
	case a.size != b.size || a.target != b.target || a.rdev != b.rdev:
		return snapshot.ChangeModified, nil
	}
	if a.isRegular() {
		same, err := d.store.same(a.obj, b.obj, a.size)
		if err != nil || !same {
			return snapshot.ChangeModified, err
		}
	}
	if !a.sameAttributes(b) {
		return snapshot.ChangeMetadata, nil
	}
	return "", nil // another inode with the same in it
}

// Open reads a file as base and layers have it, from the store: what the tree
// has there now does not matter.
func (d *Driver) Open(ctx context.Context, layers []snapshot.LayerID, path string) (io.ReadCloser, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	e, err := d.entryIn(layers, path)
	d.forgetLayers()
	if err != nil {
		return nil, err
	}
	switch {
	case e == nil:
		return nil, &snapshot.Error{Code: snapshot.CodeNotFound, Msg: fmt.Sprintf("%q was not there", path), Err: unix.ENOENT}
	case e.kind() == unix.S_IFLNK:
		return io.NopCloser(strings.NewReader(e.target)), nil
	case !e.isRegular():
		return nil, &snapshot.Error{
			Code: snapshot.CodeUnsupported,
			Msg:  fmt.Sprintf("%q was neither a file nor a symbolic link", path),
		}
	}
	return d.store.content(e.obj, e.size)
}

// entryIn finds path in the newest layer that changed it. If none did, it is as
// in base: what the first layer of the shown view that changed it found there,
// or what the index has.
func (d *Driver) entryIn(layers []snapshot.LayerID, path string) (*entry, error) {
	if d.ix == nil {
		return nil, nil
	}
	for _, id := range slices.Backward(layers) {
		l, err := d.layer(id)
		if err != nil {
			return nil, err
		}
		if c := l.find(path); c != nil {
			return c.post, nil
		}
	}
	now, err := d.chain(&d.ix.view)
	if err != nil {
		return nil, err
	}
	for _, id := range now {
		l, err := d.layer(id)
		if err != nil {
			return nil, err
		}
		if c := l.find(path); c != nil {
			return c.pre, nil
		}
	}
	return d.entryAt(path), nil
}
