package session

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// A rollback, or a redo, with DriftKeep goes from one state of the tree to
// another and takes what others wrote along: the new top is the target and above
// it one more entry, whose layer has the present content of the paths that
// others changed (snapshot.Carrier). That is right where these paths are
// disjoint from what is undone, or done again (collisions); else it is refused.

// A passage is the way from the top of the tree to another top.
type passage struct {
	undone []snapshot.Snapshot // what comes or goes, newest first
	others []snapshot.Snapshot // drift that is to be kept, newest first
	kept   []snapshot.ID       // of undone: what is in the present state already
	paths  []snapshot.Change   // what others changed, as it is told
}

// keeping sorts what a rollback drops. An entry of others that the caller named
// is dropped like a command.
func keeping(dropped []snapshot.Snapshot, named snapshot.ID) (p passage) {
	for _, e := range dropped {
		if e.Kind == snapshot.KindDrift && e.ID != named {
			p.others = append(p.others, e)
		} else {
			p.undone = append(p.undone, e)
		}
	}
	return p
}

// check finds out what others changed, in p and before it, and refuses if that
// cannot be kept.
func (s *Session) check(ctx context.Context, p *passage, before []snapshot.Change) error {
	paths, err := s.changesOf(ctx, p.others)
	if err != nil {
		return err
	}
	p.paths = append(slices.Clone(before), paths...)
	if len(p.paths) == 0 {
		return nil
	}
	undone, err := s.changesOf(ctx, p.undone)
	if err != nil {
		return err
	}
	if paths := collisions(undone, p.paths); len(paths) > 0 {
		return conflict("others changed what would be undone too, so their changes cannot be kept:", paths,
			"roll back with --drift drop to drop all that others changed as well (redo brings it back), or copy it away first"+s.shownBy(ctx, p.others, paths))
	}
	return nil
}

// shownBy says which diff shows what others did to these paths, as more lines
// of a hint. An entry that cannot be read is left out: the conflict is what counts.
func (s *Session) shownBy(ctx context.Context, others []snapshot.Snapshot, paths []string) (lines string) {
	const most = 3
	for _, e := range others {
		changes, err := s.changesOf(ctx, []snapshot.Snapshot{e})
		if err != nil || !slices.ContainsFunc(changes, func(c snapshot.Change) bool { return slices.Contains(paths, c.Path) }) {
			continue
		}
		line := "\nwhat they changed: deployx diff " + string(e.ID)
		if _, err := s.rec.Snapshot(e.ID); err != nil { // in the open layer still
			line = "\nwhat they changed, among all since base: deployx diff"
		}
		if lines += line; strings.Count(lines, "\n") == most {
			break
		}
	}
	return lines
}

// conflict names paths, as many as a person reads.
func conflict(msg string, paths []string, hint string) error {
	const most = 20
	if more := len(paths) - most; more > 0 {
		hint = fmt.Sprintf("and %d more\n%s", more, hint)
	}
	return &snapshot.Error{Code: snapshot.CodeDriftConflict, Msg: msg, Paths: paths[:min(most, len(paths))], Hint: hint}
}

// lost is the conflict of a caller who did not allow that changes are carried
// over.
func (s *Session) lost(ctx context.Context, p passage, hint string) error {
	paths := named(p.paths)
	return conflict("others changed the tree meanwhile:", paths, hint+s.shownBy(ctx, p.others, paths))
}

// named are the paths of changes, each once and in order.
func named(changes []snapshot.Change) (paths []string) {
	for _, c := range changes {
		paths = append(paths, c.Path)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// changesOf are the changes of each entry's layer, one after the other. A layer
// that entries share is told for each of them: who did what in it is not known.
func (s *Session) changesOf(ctx context.Context, entries []snapshot.Snapshot) (list []snapshot.Change, err error) {
	for _, e := range entries {
		if e.Layer == "" {
			continue
		}
		below, err := s.rec.Layers(e.Parent)
		if err != nil {
			return nil, err
		}
		if n := len(below); n > 0 && below[n-1] == e.Layer {
			below = below[:n-1]
		}
		err = s.drv.Changes(ctx, below, []snapshot.LayerID{e.Layer}, func(c snapshot.Change) error {
			list = append(list, c)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// sealDrift records what others wrote to the open layer as an entry, and shows a
// fresh layer above it: what is carried over must not change meanwhile. The
// rollbacks that can be taken back stay so. It returns the head as it is then.
func (s *Session) sealDrift(ctx context.Context, d *snapshot.Snapshot) (snapshot.Head, error) {
	h := s.rec.Head()
	if d == nil {
		return h, nil
	}
	s.dropShell()
	if err := s.refusePinned(ctx); err != nil {
		return h, err
	}
	old := s.rec.Head()
	h.Snapshot, h.Open, h.Stands = d.ID, snapshot.NewLayerID(), nil
	if err := s.commit(ctx, h, *d); err != nil {
		return h, err
	}
	crash.Point("session.drift")
	held, err := s.pushFrom(ctx, old)
	if err == nil && len(held) > 0 {
		err = busy(s.o.Tree.Path, held)
	}
	return s.rec.Head(), err
}

// carry makes the entry that keeps p's paths, as the layers from have them,
// above the top that to names; nil if there is nothing to keep.
func (s *Session) carry(ctx context.Context, from []snapshot.LayerID, p passage, to snapshot.Head) (*snapshot.Snapshot, error) {
	if len(p.paths) == 0 {
		return nil, nil
	}
	below, err := s.rec.Layers(to.Snapshot)
	if err != nil {
		return nil, err
	}
	c, ok := s.drv.(snapshot.Carrier)
	if !ok {
		return nil, &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: "the driver " + s.drv.Name() + " cannot keep what others changed",
			Hint: "roll back with --drift drop to drop it too, or copy it away first",
		}
	}
	var layer snapshot.LayerID
	err = s.sparing(func() (err error) {
		layer, err = c.Carry(ctx, from, below, p.paths)
		return err
	})
	if err != nil || layer == "" {
		return nil, err
	}
	crash.Point("session.carried")
	k := snapshot.Snapshot{
		ID: snapshot.NewID(), Parent: to.Snapshot, Kind: snapshot.KindDrift, Layer: layer, Context: to.Context, Started: time.Now(),
	}
	for _, e := range slices.Backward(p.others) {
		k.Kept = append(k.Kept, e.ID)
	}
	err = s.drv.Changes(ctx, below, []snapshot.LayerID{layer}, func(c snapshot.Change) error {
		k.Changes.Add(c)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, s.drv.Discard(ctx, layer))
	}
	return &k, nil
}

// rollbackKeeping is a rollback that keeps what others wrote. drift is what they
// wrote to the open layer, nil for nothing.
func (s *Session) rollbackKeeping(ctx context.Context, dropped []snapshot.Snapshot, drift *snapshot.Snapshot, t Target, o RollbackOptions, start time.Time) (Undo, error) {
	oldest := dropped[len(dropped)-1]
	p := keeping(dropped, t.ID)
	if drift != nil {
		p.others = append([]snapshot.Snapshot{*drift}, p.others...)
	}
	u := Undo{Dropped: p.undone, Dir: oldest.Dir, Context: oldest.Context, DryRun: o.DryRun}
	if len(p.undone) == 0 {
		return u, nothingButDrift()
	}
	if err := s.check(ctx, &p, nil); err != nil {
		return u, err
	}
	u.Kept = p.paths
	if o.DryRun {
		return u, nil
	}
	h, err := s.sealDrift(ctx, drift)
	if err != nil {
		return u, err
	}
	to := s.rec.Head() // the floor stays
	to.Snapshot, to.Context = oldest.Parent, oldest.Context
	to.Redo = append(to.Redo, snapshot.Frame{Snapshot: h.Snapshot, Context: h.Context})
	layers, err := s.rec.Layers(h.Snapshot)
	if err != nil {
		return u, err
	}
	err = s.goKeeping(ctx, layers, h, to, p, &u, start)
	return u, err
}

func nothingButDrift() error {
	return &snapshot.Error{
		Code: snapshot.CodeUnknownSnapshot, Msg: "there is nothing to roll back: no command is applied, only what others changed",
		Hint: "name its id (deployx log), or use --drift drop, to roll that back",
	}
}

// goKeeping goes from one head to another and keeps p's paths as the layers from
// have them.
func (s *Session) goKeeping(ctx context.Context, layers []snapshot.LayerID, from, to snapshot.Head, p passage, u *Undo, start time.Time) error {
	k, err := s.carry(ctx, layers, p, to)
	if err != nil {
		return err
	}
	if k == nil {
		return s.goTo(ctx, from, to, u, start)
	}
	to.Snapshot, u.KeptAs = k.ID, k
	if err := s.goTo(ctx, from, to, u, start, *k); err != nil {
		u.KeptAs = nil
		return err
	}
	return nil
}
