package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// A run is layers that have been merged. Runs are derived data. They are kept
// in merged/ as LAST.COUNT, with the layers' ids in the file "of", and appear by
// rename when they are whole; a lost or half-made one is made again. The smaller
// runs that a larger one was made of stay: they serve the views that a rollback
// goes to.
type run struct {
	n      int
	first  snapshot.LayerID // known once its list has been looked at
	looked bool
}

// runs are those on disk by the id of their newest layer, longest first. What
// is kept here does not grow with the length of a run, and neither does a look
// for one.
type runs struct {
	mu   sync.Mutex // Maintain adds while a command runs
	read bool
	by   map[snapshot.LayerID][]*run
}

func (d *Driver) mergedDir(last snapshot.LayerID, n int) string {
	return filepath.Join(d.layers, "merged", fmt.Sprintf("%s.%d", last, n))
}

// units covers layers (oldest first) with few units, and returns them newest
// first. It costs what there are units, not layers.
func (d *Driver) units(layers []snapshot.LayerID) []unit {
	var out []unit
	split := d.split(layers)
	for len(layers) > 0 {
		from := 0
		if len(layers) > split {
			from = split
		}
		last, n := layers[len(layers)-1], d.longest(layers[from:])
		if n == 0 {
			out = append(out, unit{d.dir(last, ""), 1})
			n = 1
		} else {
			out = append(out, unit{d.mergedDir(last, n), n})
		}
		layers = layers[:len(layers)-n]
	}
	return out
}

// split is how many of the oldest layers may not share a run with newer ones.
func (d *Driver) split(layers []snapshot.LayerID) int {
	if d.bound == "" {
		return 0
	}
	return slices.Index(layers, d.bound) + 1
}

// mergeable are the units of those that may share a run with the newest.
func (d *Driver) mergeable(layers []snapshot.LayerID) []unit {
	return d.units(layers[d.split(layers):])
}

// longest finds the length of the longest run that layers end with; 0 if there
// is none.
//
// That first and last layer are the same is enough: a layer always stands on
// the same ones (snapshot.View), but for a fold, which puts one layer with an id
// of its own in the place of the oldest.
func (d *Driver) longest(layers []snapshot.LayerID) int {
	d.runs.mu.Lock()
	defer d.runs.mu.Unlock()
	d.readRuns()
	for _, r := range d.runs.by[layers[len(layers)-1]] {
		if r.n > len(layers) {
			continue
		}
		of := layers[len(layers)-r.n:]
		if !r.looked {
			r.looked = true
			if list, err := readRun(d.mergedDir(of[r.n-1], r.n)); err == nil && slices.Equal(list, of) {
				r.first = of[0]
			} else if err == nil && len(list) == r.n {
				r.first = list[0]
			}
		}
		if r.first == of[0] {
			return r.n
		}
	}
	return 0
}

// runUsed begins the last line of a run's list: the bytes and inodes that it
// takes beside what it shares with its layers, and how many entries it has.
const runUsed = "used "

// runSize is what that line says.
type runSize struct {
	used    snapshot.Usage
	entries int
}

// readSize reads that line and no more: lists can be long.
func readSize(dir string) (s runSize, err error) {
	f, err := os.Open(filepath.Join(dir, "of"))
	if err != nil {
		return s, err
	}
	defer f.Close() //nolint:errcheck // read only
	fi, err := f.Stat()
	if err != nil {
		return s, err
	}
	b := make([]byte, min(fi.Size(), 128))
	if _, err := f.ReadAt(b, fi.Size()-int64(len(b))); err != nil {
		return s, err
	}
	_, line, _ := strings.Cut(string(b), runUsed)
	if _, err := fmt.Sscan(line, &s.used.Bytes, &s.used.Inodes, &s.entries); err != nil {
		return runSize{}, fmt.Errorf("%q: no line of sizes: %w", f.Name(), err)
	}
	s.used.Bytes += (fi.Size() + 4095) / 4096 * 4096 // the list itself
	s.used.Inodes++
	return s, nil
}

// readRun reads what a run stands for, oldest first.
func readRun(dir string) ([]snapshot.LayerID, error) {
	b, err := os.ReadFile(filepath.Join(dir, "of"))
	if err != nil {
		return nil, err
	}
	var list []snapshot.LayerID
	ids, _, _ := strings.Cut(string(b), runUsed)
	for id := range strings.FieldsSeq(ids) {
		list = append(list, snapshot.LayerID(id))
	}
	return list, nil
}

// readRuns looks once what is there, by name only. Another process may add
// runs: they are missed until then, which costs depth and nothing else.
func (d *Driver) readRuns() {
	if d.runs.read {
		return
	}
	d.runs.read, d.runs.by = true, map[snapshot.LayerID][]*run{}
	found, err := os.ReadDir(filepath.Join(d.layers, "merged"))
	if err != nil {
		return
	}
	for _, f := range found {
		last, count, _ := strings.Cut(f.Name(), ".")
		if n, err := strconv.Atoi(count); err == nil && n > 1 && len(last) == layerIDLength {
			d.addRun(snapshot.LayerID(last), &run{n: n})
		}
	}
}

func (d *Driver) addRun(last snapshot.LayerID, r *run) {
	list := append(d.runs.by[last], r)
	slices.SortFunc(list, func(a, b *run) int { return b.n - a.n })
	d.runs.by[last] = list
}

// mergeAside makes a directory like a layer's, which stands for layers. It is
// in nobody's way, and removed on error.
func (d *Driver) mergeAside(ctx context.Context, below, layers []snapshot.LayerID) (aside string, size runSize, err error) {
	view, err := d.view(below, layers)
	if err != nil {
		return "", size, err
	}
	defer view.close()
	m := merge{ctx: ctx, below: view.below(), split: view.split}
	aside, err = d.aside(&m, func(top string) error { return m.build(view, top) })
	return aside, m.size, err
}

// aside makes a directory like a layer's and has build fill it, whose argument
// is to become the tree's root. It is removed on error.
func (d *Driver) aside(m *merge, build func(top string) error) (aside string, err error) {
	name := filepath.Join("merged", fmt.Sprintf("new.%d", time.Now().UnixNano()))
	aside = filepath.Join(d.layers, name)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.toTrash(aside))
		}
	}()
	made := filepath.Join(cmp.Or(m.by, d.layers), name)
	top := filepath.Join(made, "u")
	if d.name != "" {
		made = filepath.Join(made, "s")
		top, m.prefix = filepath.Join(made, d.name), "/"+d.name
	}
	if err := os.MkdirAll(made, 0o755); err != nil {
		return aside, err
	}
	lock, err := lockAside(aside)
	if err != nil {
		return aside, err
	}
	defer lock.Close() //nolint:errcheck // a lock
	return aside, build(top)
}

// Fold makes a layer that stands for the bottom of a stack. See
// snapshot.Folder.
func (d *Driver) Fold(ctx context.Context, layers []snapshot.LayerID) (snapshot.LayerID, error) {
	aside, _, err := d.mergeAside(ctx, nil, layers)
	if err != nil {
		return "", err
	}
	crash.Point("overlay.folded")
	id := snapshot.NewLayerID()
	return id, os.Rename(aside, d.dir(id, ""))
}

func (d *Driver) publish(aside string, layers []snapshot.LayerID, size runSize) error {
	var b strings.Builder
	for _, id := range layers {
		fmt.Fprintln(&b, id)
	}
	fmt.Fprintf(&b, "%s%d %d %d\n", runUsed, size.used.Bytes, size.used.Inodes, size.entries)
	if err := os.WriteFile(filepath.Join(aside, "of"), []byte(b.String()), 0o600); err != nil {
		return err
	}
	last := layers[len(layers)-1]
	err := os.Rename(aside, d.mergedDir(last, len(layers)))
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return d.toTrash(aside) // another process was quicker
	}
	if err != nil {
		return err
	}
	d.runs.mu.Lock()
	defer d.runs.mu.Unlock()
	d.addRun(last, &run{n: len(layers), first: layers[0], looked: true})
	return nil
}
