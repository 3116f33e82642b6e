package snapshottest

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// full: no space, or no inode, is an error that leaves everything as it was.
func (o Options) full(t *testing.T, open Open) {
	img := testns.NewImage(t, testns.ImageOptions{Type: o.FS})
	roomy := o.Place
	o.Place = func(t *testing.T) Place {
		p := placeIn(t, img.Dir)
		p.Plain = roomy(t).Plain
		return p
	}
	r := newRig(t, o, open, aTree()...)
	r.do(write("d/f", "one"), mv("d/s", "moved"))
	r.push()
	ballast := filepath.Join(img.Dir, "ballast")
	for _, left := range []int64{0, 4096, 65536, 1 << 20} {
		r.do(appendTo("d/f", "more"), rmAll("moved"), mkdir("moved", 0o755))
		r.must("fill the disk", fill(ballast, left))
		r.tryPush()
		r.must("free the disk", os.Remove(ballast))
	}
	r.push()
	r.sweep()
}

// fill leaves that many bytes free on the file system of path.
func fill(path string, left int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	block := []byte(strings.Repeat("x", 1<<16))
	for size := len(block); size > 0; {
		if _, err := f.Write(block[:size]); errors.Is(err, unix.ENOSPC) {
			size /= 16
		} else if err != nil {
			return errors.Join(err, f.Close())
		}
	}
	st, err := f.Stat()
	if err == nil {
		err = f.Truncate(max(0, st.Size()-left))
	}
	return errors.Join(err, f.Sync(), f.Close())
}

// tryPush pushes if it can, and demands the old tree if it cannot.
func (r *rig) tryPush() {
	r.t.Helper()
	before := r.picture(r.tree.root)
	dirty, err := r.d.Dirty(r.ctx(), r.view)
	if err == nil && !dirty {
		r.t.Fatal("Dirty is false on a full disk")
	}
	v := snapshot.View{Layers: append(slices.Clone(r.view.Layers), r.view.Open), Open: snapshot.NewLayerID()}
	if err == nil {
		_, err = r.d.Show(r.ctx(), v)
	}
	if err == nil {
		r.keep(v.Layers, before)
		r.shows(v, before)
		return
	}
	if code := snapshot.CodeOf(err); code != snapshot.CodeNoSpace {
		r.t.Errorf("code on a full disk: want %s, got %s: %v", snapshot.CodeNoSpace, code, err)
	}
	r.wantShown(r.view.Open)
	r.same("after an error on a full disk", before)
}
