package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// A unit is what is stacked for one layer, or for a run of layers that have
// been merged.
type unit struct {
	dir string // has s/ or u/ as a layer does
	n   int    // layers that it stands for
}

// Runs are derived data. They are kept in merged/ as LAST.COUNT, with the
// layers' ids in the file "of", and appear by rename when they are whole; a
// lost or half-made one is made again. Sizes grow as in a log-structured merge
// tree, so that a layer is linked some log(n) times in all, and the smaller runs
// serve the views that a rollback goes to.
const (
	mergeAbove = 12 // units in a view; from then on a merge is worth it
	mergeLeast = 8  // units that one merge takes at the least
	mergeMust  = 15 // units at which Show merges before it mounts
)

// runs are the merged runs on disk by the id of their oldest layer, longest
// first.
type runs struct {
	mu   sync.Mutex // Maintain adds while a command runs
	read bool
	by   map[snapshot.LayerID][][]snapshot.LayerID
}

func (d *Driver) mergedDir(run []snapshot.LayerID) string {
	return filepath.Join(d.layers, "merged", fmt.Sprintf("%s.%d", run[len(run)-1], len(run)))
}

// units covers layers (oldest first) with as few units as there are runs for,
// and returns them newest first.
func (d *Driver) units(layers []snapshot.LayerID) []unit {
	var out []unit
	for i := 0; i < len(layers); {
		run := d.longest(layers[i:])
		if run == nil {
			out = append(out, unit{d.dir(layers[i], ""), 1})
			i++
			continue
		}
		out = append(out, unit{d.mergedDir(run), len(run)})
		i += len(run)
	}
	slices.Reverse(out)
	return out
}

// longest finds the longest run that layers begin with.
func (d *Driver) longest(layers []snapshot.LayerID) []snapshot.LayerID {
	d.runs.mu.Lock()
	defer d.runs.mu.Unlock()
	d.readRuns()
	for _, run := range d.runs.by[layers[0]] {
		if len(run) <= len(layers) && slices.Equal(run, layers[:len(run)]) {
			return run
		}
	}
	return nil
}

// readRuns looks once what is there. Another process may add runs: they are
// missed until then, which costs depth and nothing else.
func (d *Driver) readRuns() {
	if d.runs.read {
		return
	}
	d.runs.read, d.runs.by = true, map[snapshot.LayerID][][]snapshot.LayerID{}
	found, err := filepath.Glob(filepath.Join(d.layers, "merged", "*", "of"))
	if err != nil {
		return
	}
	for _, name := range found {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		var run []snapshot.LayerID
		for id := range strings.FieldsSeq(string(b)) {
			run = append(run, snapshot.LayerID(id))
		}
		if len(run) > 1 && d.mergedDir(run) == filepath.Dir(name) {
			d.addRun(run)
		}
	}
}

func (d *Driver) addRun(run []snapshot.LayerID) {
	list := append(d.runs.by[run[0]], run)
	slices.SortFunc(list, func(a, b []snapshot.LayerID) int { return len(b) - len(a) })
	d.runs.by[run[0]] = list
}

// dropRuns forgets and discards the runs that hold a layer.
func (d *Driver) dropRuns(id snapshot.LayerID) error {
	d.runs.mu.Lock()
	defer d.runs.mu.Unlock()
	d.readRuns()
	var errs []error
	for first, list := range d.runs.by {
		d.runs.by[first] = slices.DeleteFunc(list, func(run []snapshot.LayerID) bool {
			if !slices.Contains(run, id) {
				return false
			}
			errs = append(errs, d.toTrash(d.mergedDir(run)))
			return true
		})
	}
	return errors.Join(errs...)
}

// Maintain merges layers of a view while it is more deeply stacked than is
// good. It reads sealed layers and adds a run beside them, so it may go on
// while commands run; ctx ends it.
func (d *Driver) Maintain(ctx context.Context, v snapshot.View) error {
	return d.mergeDown(ctx, v.Layers, d.mergeAbove)
}

func (d *Driver) mergeDown(ctx context.Context, layers []snapshot.LayerID, above int) error {
	for {
		units := d.units(layers)
		if len(units) <= above {
			return nil
		}
		n := 0
		for _, u := range units[:worth(units)] {
			n += u.n
		}
		if err := d.mergeRun(ctx, layers[:len(layers)-n], layers[len(layers)-n:]); err != nil {
			return fmt.Errorf("merge %d layers: %w", n, err)
		}
	}
}

// worth is how many of the newest units one merge should take: so many that
// the unit below is more than twice as large as the outcome, or all.
func worth(units []unit) int {
	k, n := 0, 0
	for k < len(units) && (k < min(mergeLeast, len(units)) || units[k].n < 2*n) {
		n += units[k].n
		k++
	}
	return k
}

// mergeRun makes the run that stands for layers, above below.
func (d *Driver) mergeRun(ctx context.Context, below, layers []snapshot.LayerID) error {
	aside, err := d.mergeAside(ctx, below, layers)
	if err != nil {
		return err
	}
	if err := d.publish(aside, layers); err != nil {
		return errors.Join(err, d.toTrash(aside))
	}
	return nil
}

// mergeAside makes a directory like a layer's, which stands for layers. It is
// in nobody's way, and removed on error.
func (d *Driver) mergeAside(ctx context.Context, below, layers []snapshot.LayerID) (aside string, err error) {
	view, err := d.view(below, layers)
	if err != nil {
		return "", err
	}
	defer view.close()
	aside = filepath.Join(d.layers, "merged", fmt.Sprintf("new.%d", time.Now().UnixNano()))
	defer func() {
		if err != nil {
			err = errors.Join(err, d.toTrash(aside))
		}
	}()
	top := filepath.Join(aside, "u")
	m := merge{ctx: ctx, below: view.below(), split: view.split}
	made := aside
	if d.name != "" {
		made = filepath.Join(aside, "s")
		top, m.prefix = filepath.Join(made, d.name), "/"+d.name
	}
	if err := os.MkdirAll(made, 0o755); err != nil {
		return aside, err
	}
	return aside, m.build(view, top)
}

// Fold makes a layer that stands for the bottom of a stack. See
// snapshot.Folder.
func (d *Driver) Fold(ctx context.Context, layers []snapshot.LayerID) (snapshot.LayerID, error) {
	aside, err := d.mergeAside(ctx, nil, layers)
	if err != nil {
		return "", err
	}
	crash.Point("overlay.folded")
	id := snapshot.NewLayerID()
	return id, os.Rename(aside, d.dir(id, ""))
}

func (d *Driver) publish(aside string, layers []snapshot.LayerID) error {
	var b strings.Builder
	for _, id := range layers {
		fmt.Fprintln(&b, id)
	}
	if err := os.WriteFile(filepath.Join(aside, "of"), []byte(b.String()), 0o600); err != nil {
		return err
	}
	err := os.Rename(aside, d.mergedDir(layers))
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return d.toTrash(aside) // another process was quicker
	}
	if err != nil {
		return err
	}
	d.runs.mu.Lock()
	defer d.runs.mu.Unlock()
	d.addRun(slices.Clone(layers))
	return nil
}
