package snapshottest

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A Doer is a driver that has the suite's operations done, by a command for one. It
// returns the kernel's error number for each.
type Doer interface {
	Do(ops []Op) ([]error, error)
}

// Apply does ops below root and returns the kernel's error number for each.
func Apply(root string, ops []Op) []error {
	s, errs := newSide(root), make([]error, len(ops))
	for i, op := range ops {
		errs[i] = s.apply(op)
	}
	return errs
}

// Held runs what of the suite makes sense in a tree that a process holds all the
// while, so that it is never hidden: base is shown by a view without layers. The
// driver must be one that shows each view in place.
func (o Options) Held(t *testing.T, open Open) {
	o = o.placed(t)
	o.held, o.OpenTouches, o.LosesFlags = true, false, false
	t.Run("named", func(t *testing.T) { o.Named(t, open) })
	t.Run("random", func(t *testing.T) { o.Random(t, open) })
	for name, check := range map[string]func(*rig){
		"many layers":            (*rig).manyLayers,
		"open":                   (*rig).openPaths,
		"changes":                (*rig).changesCalls,
		"unknown layer":          (*rig).unknownLayer,
		"same view, other ids":   (*rig).otherIDs,
		"open layer left behind": (*rig).leftBehind,
	} {
		t.Run(name, func(t *testing.T) { check(newRig(t, o, open, aTree()...)) })
	}
}

// whole has the bytes of a file copied up, in a held tree, before it is opened for
// writing without a write that shows: Options.OpenTouches depends on what was
// done to the file while the layer was live, which no view there ends.
func (o Options) whole(ops []Op) []Op {
	if !o.held {
		return ops
	}
	var all []Op
	for _, op := range ops {
		switch op.Verb {
		case "open", "quiet", "mapped", "punch", "overwrite", "truncate":
			all = append(all, Op{Verb: "grow", Path: op.Path, Data: "+"})
		}
		all = append(all, op)
	}
	return all
}

// refusedLate: overlayfs sets the time of the directory that a directory was not moved
// from, for one with entries was in the way, if the latter was made in the live layer.
// Which were is not known here.
func (s *side) refusedLate(op Op) bool {
	if op.Verb != "rename" || kind(at(s.root, op.Path)) != unix.S_IFDIR || kind(at(s.root, op.To)) != unix.S_IFDIR {
		return false
	}
	in, err := os.ReadDir(at(s.root, op.To))
	return err == nil && len(in) > 0
}
