package fallback

import (
	"fmt"

	"deployx/internal/durable"
)

// journal is all that finishing a restore, or taking it back, needs to know.
// As the file "restore" it says that the stage is complete and the tree may be
// between two states; as "restore.clean" that the tree is at one end, and only
// the stage may have to be removed.
type journal struct {
	id       uint64
	name     string // of the stage in the tree; "" when it is in the state
	rootTime stamp  // of the tree's root before that stage was made
	ops      []op
	unlock   []string // what must be opened for writing first
	settles  []change // attributes to set in the end, deepest first
	net      []change // all paths that change
	view     shown    // what the tree shows afterwards
}

const (
	journalApply = "restore"
	journalClean = "restore.clean"
	journalMagic = "deployx copy restore 1\n"
)

// An op is one rename. Whether it was done can be told at any time from the
// stage alone, where nobody but us writes.
type op struct {
	kind opKind
	path string
	name string // in the stage
	ino  uint64 // of what was staged there
	old  *entry // what it takes out of the tree
}

type opKind uint64

const (
	opBring opKind = iota // from the stage, to where nothing is
	opTake                // to the stage
	opSwap                // both at once
)

func (j *journal) save(path string) error {
	e := encoder{b: []byte(journalMagic)}
	e.uint(j.id)
	e.str(j.name)
	e.stamp(j.rootTime)
	e.uint(uint64(len(j.ops)))
	for _, o := range j.ops {
		e.uint(uint64(o.kind))
		e.str(o.path)
		e.str(o.name)
		e.uint(o.ino)
	}
	e.uint(uint64(len(j.unlock)))
	for _, p := range j.unlock {
		e.str(p)
	}
	e.changes(j.settles)
	e.changes(j.net)
	e.view(&j.view)
	return durable.Write(path, appendSum(e.b))
}

func loadJournal(path string) (*journal, error) {
	d, err := readSummed(path, journalMagic)
	if err != nil {
		return nil, err
	}
	j := &journal{id: d.uint(), name: d.str(), rootTime: d.stamp()}
	for range d.count() {
		j.ops = append(j.ops, op{kind: opKind(d.uint()), path: d.str(), name: d.str(), ino: d.uint()})
	}
	for range d.count() {
		j.unlock = append(j.unlock, d.str())
	}
	j.settles, j.net, j.view = d.changes(), d.changes(), d.view()
	if d.err != nil {
		return nil, fmt.Errorf("%s: %w", path, d.err)
	}
	return j, nil
}
