package fallback

import (
	"fmt"
	"slices"
	"strings"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// layer is what happened between two views: both sides of every path that
// differs, in byte order of the paths.
type layer struct {
	seq     uint64 // of the last transaction in it
	bytes   int64  // in the store, brought by it
	changes []change
}

// same says that a restore has nothing to do between a and b. Two objects with
// the same bytes count as different here: see Driver.equal.
func same(a, b *entry) bool {
	return sameButBytes(a, b) && (a == nil || a.obj == b.obj)
}

func sameButBytes(a, b *entry) bool {
	if a == nil || b == nil {
		return a == b
	}
	if !a.sameAttributes(b) {
		return false
	}
	return a.isDir() || a.size == b.size && a.rdev == b.rdev && a.link == b.link && a.target == b.target
}

// add puts later changes on top: the first before and the last after remain,
// and what came back to where it was is dropped.
func (l *layer) add(seq uint64, bytes int64, cs []change) {
	l.seq = seq
	l.bytes += bytes
	if len(cs) == 0 {
		return
	}
	slices.SortFunc(cs, byPath)
	out := make([]change, 0, len(l.changes)+len(cs))
	i := 0
	for _, c := range cs {
		for i < len(l.changes) && l.changes[i].path < c.path {
			out = append(out, l.changes[i])
			i++
		}
		if i < len(l.changes) && l.changes[i].path == c.path {
			c.pre = l.changes[i].pre
			i++
		}
		if !same(c.pre, c.post) {
			out = append(out, c)
		}
	}
	l.changes = append(out, l.changes[i:]...)
}

func byPath(a, b change) int { return strings.Compare(a.path, b.path) }

// find gives the change of one path, nil if there is none.
func (l *layer) find(path string) *change {
	i, ok := slices.BinarySearchFunc(l.changes, path, func(c change, p string) int {
		return strings.Compare(c.path, p)
	})
	if !ok {
		return nil
	}
	return &l.changes[i]
}

const layerMagic = "deployx copy layer 1\n"

func (l *layer) save(path string) error {
	e := encoder{b: []byte(layerMagic)}
	e.uint(l.seq)
	e.int(l.bytes)
	e.changes(l.changes)
	return durable.Write(path, appendSum(e.b))
}

func loadLayer(path string) (*layer, error) {
	d, err := readSummed(path, layerMagic)
	if err != nil {
		return nil, err
	}
	l := &layer{seq: d.uint(), bytes: d.int(), changes: d.changes()}
	if d.err != nil {
		return nil, fmt.Errorf("%s: %w", path, d.err)
	}
	return l, nil
}

// tx is one step of the driver's own history: what the log is made of.
type tx struct {
	seq     uint64
	layer   snapshot.LayerID // that takes changes; "" is base
	changes []change
	sets    []change // of the index alone: restored, or looked at again
	view    *shown   // now shown
	discard snapshot.LayerID
	restore uint64 // the journal of that number is done
	pack    uint64 // counters after it
	link    uint64
	bytes   int64 // added to the store
	freed   int64 // taken off since the transaction before
}

func (t *tx) encode() []byte {
	var e encoder
	e.uint(t.seq)
	e.str(string(t.layer))
	e.changes(t.changes)
	e.changes(t.sets)
	e.bool(t.view != nil)
	if t.view != nil {
		e.view(t.view)
	}
	e.str(string(t.discard))
	e.uint(t.restore)
	e.uint(t.pack)
	e.uint(t.link)
	e.int(t.bytes)
	e.int(t.freed)
	return e.b
}

func decodeTx(d *decoder) *tx {
	t := &tx{seq: d.uint(), layer: snapshot.LayerID(d.str()), changes: d.changes(), sets: d.changes()}
	if d.bool() {
		v := d.view()
		t.view = &v
	}
	t.discard = snapshot.LayerID(d.str())
	t.restore, t.pack, t.link, t.bytes, t.freed = d.uint(), d.uint(), d.uint(), d.int(), d.int()
	return t
}
