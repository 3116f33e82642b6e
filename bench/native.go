package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"deployx/overlay"
	"deployx/snapshot"
)

// What is stacked below the open layer: base and sealed layers. With shallow it is
// base alone, the least that overlayfs can be had with: what that costs is the
// kernel's.
const (
	depth   = 16
	shallow = 1
)

// A work is something that people do in a directory.
type work struct {
	name string
	fs   string // "" is ext4
	// base makes what it needs, once in the plain directory and once in what will
	// be the tree's base.
	base func(dir string) error
	// restore puts a plain directory back after do. A tree is rolled back.
	restore func(dir string) error
	// warm is done before each round, if the work is not the first in its view.
	warm func(dir string) error
	do   func(dir string) error
}

// native measures every work in a plain directory and in a tree, in turns.
func native(o options) error {
	m, err := materials(o)
	defer os.RemoveAll(m.dir) //nolint:errcheck // in a temporary directory
	if err != nil {
		return err
	}
	fmt.Printf("\nPrograms inside a tree of %d layers, and of base alone below the open layer, beside a plain directory of the same filesystem: medians of %d rounds, in turns.\n\n", depth, o.rounds)
	t := newTable("work", "filesystem", "plain", "tree", "ratio (median of rounds)", "ratio above base alone", "in the layer")
	for _, w := range works(m) {
		if !strings.HasPrefix(w.name, o.only) {
			continue
		}
		if err := w.measure(o, t); err != nil {
			return errors.Join(fmt.Errorf("%s: %w", w.name, err), t.end())
		}
	}
	return t.end()
}

func (w work) measure(o options, t table) (err error) {
	if w.fs == "" {
		w.fs = "ext4"
	}
	var args []string
	if w.fs == "ext4" {
		args = []string{"-N", "400000", "-E", "lazy_itable_init=0"}
	}
	img, err := newImage(o, w.fs, 8, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	plain := img.path("plain")
	var trees []*deep
	defer func() {
		for _, d := range trees {
			err = errors.Join(err, d.close())
		}
	}()
	for _, n := range []int{depth, shallow} {
		d, err := newDeep(img, w, n)
		if err != nil {
			return err
		}
		trees = append(trees, d)
	}
	if err := w.prepare(plain); err != nil {
		return err
	}
	var a, b []time.Duration
	ratios := make([][]float64, len(trees))
	for range o.rounds {
		x, err := w.round(img, plain, func() error { return w.restore(plain) })
		if err != nil {
			return err
		}
		a = append(a, x)
		for i, d := range trees {
			y, err := w.round(img, d.tree, d.fresh)
			if err != nil {
				return err
			}
			if i == 0 {
				b = append(b, y)
			}
			ratios[i] = append(ratios[i], float64(y)/float64(x))
		}
	}
	t.row(w.name, w.fs, short(median(a)), short(median(b)), fmt.Sprintf("%.2f", median(ratios[0])), fmt.Sprintf("%.2f", median(ratios[1])), bytes(trees[0].grown))
	return nil
}

func (w work) prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil || w.base == nil {
		return err
	}
	return w.base(dir)
}

// round does the work once, with nothing left to write from before, and puts
// the directory back.
func (w work) round(img image, dir string, back func() error) (took time.Duration, err error) {
	if w.warm != nil {
		err = w.warm(dir)
	}
	if err := errors.Join(err, syncAll(img.dir)); err != nil {
		return 0, err
	}
	if took, err = timed(func() error { return w.do(dir) }); err != nil {
		return 0, err
	}
	return took, back()
}

// deep is a tree of many layers, with an open one above that is thrown away
// after each round.
type deep struct {
	tree, state string
	d           *overlay.Driver
	v           snapshot.View
	grown       int64 // what the last round left in its layer
}

// newDeep makes the base and the layers. Each layer leaves a file in every
// directory of the first two levels, so that all of them have parts in all
// layers.
func newDeep(img image, w work, depth int) (*deep, error) {
	at := fmt.Sprintf("layers-%d", depth)
	d := &deep{tree: img.path(at, "srv", "tree"), state: img.path(at, "state")}
	if err := w.prepare(d.tree); err != nil {
		return nil, err
	}
	var err error
	if d.d, err = overlay.New(overlay.Options{Tree: d.tree, State: d.state, MergeAbove: depth}); err != nil {
		return nil, err
	}
	for i := range depth {
		if err := d.push(); err != nil {
			return nil, err
		}
		if i == depth-1 {
			break
		}
		if err := d.touch(i); err != nil {
			return nil, err
		}
	}
	if n, _ := d.d.Depth(d.v); n != depth {
		return nil, fmt.Errorf("%d layers are stacked, not %d", n, depth)
	}
	return d, nil
}

func (d *deep) push() error {
	if d.v.Open != "" {
		d.v.Layers = append(d.v.Layers, d.v.Open)
	}
	d.v.Open = snapshot.NewLayerID()
	_, err := d.d.Show(context.Background(), d.v)
	return err
}

func (d *deep) touch(i int) error {
	for _, pattern := range []string{"", "*/", "*/*/"} {
		dirs, err := filepath.Glob(filepath.Join(d.tree, pattern) + "/.")
		if err != nil {
			return err
		}
		for _, dir := range dirs {
			if strings.Contains(dir, ".git") || strings.Contains(dir, "node_modules") {
				continue
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("layer-%d.txt", i)), []byte("x"), 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// fresh throws the open layer away.
func (d *deep) fresh() error {
	ctx, old := context.Background(), d.v.Open
	u, err := d.d.Usage(ctx, old)
	if err != nil {
		return err
	}
	d.grown = u.Bytes
	d.v.Open = snapshot.NewLayerID()
	if _, err := d.d.Show(ctx, d.v); err != nil {
		return err
	}
	return errors.Join(d.d.Discard(ctx, old), d.d.EmptyTrash(ctx))
}

func (d *deep) close() error {
	return errors.Join(d.d.Hide(context.Background()), d.d.Close())
}
