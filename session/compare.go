package session

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"deployx/snapshot"
)

// Record is the tree's history. It may be read at any time.
func (s *Session) Record() *snapshot.Record { return s.rec }

// Abandon closes a session that has changed nothing, without a look at the
// tree.
func (s *Session) Abandon() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropShell()
	s.drv.Close() //nolint:errcheck // nothing was written
}

// Comparison is two states of the tree: before and after one entry of the
// history, or base and now.
type Comparison struct {
	drv           snapshot.Driver
	below, layers []snapshot.LayerID
	split         []string // as the entry says: a driver cannot always tell later
}

// Compare makes the comparison for an entry; "" is everything since base, with
// what others have written since the last command. It takes no lock: what it
// reads of a sealed layer never changes.
func (s *Session) Compare(ctx context.Context, id snapshot.ID, f func(Comparison) error) error {
	c := Comparison{drv: s.drv}
	if id == "" {
		h := s.rec.Head()
		v, err := s.rec.View(h)
		if err != nil {
			return err
		}
		c.layers = v.Layers
		if v.Open != "" {
			if _, _, err := s.glance(ctx, v); err != nil {
				return err
			}
			c.layers = append(c.layers, v.Open)
		}
		return f(c)
	}
	if err := s.refuseBegun(id); err != nil {
		return err
	}
	e, err := s.rec.Snapshot(id)
	if err != nil || e.Layer == "" {
		if err == nil {
			err = f(c)
		}
		return err
	}
	below, err := s.rec.Layers(e.Parent)
	if err != nil {
		return err
	}
	if n := len(below); n > 0 && below[n-1] == e.Layer {
		below = below[:n-1] // a shared layer is told as a whole
	}
	c.below, c.layers, c.split = below, []snapshot.LayerID{e.Layer}, e.SplitLinks
	return f(c)
}

// refuseBegun names a command whose changes are in no layer of its own yet.
func (s *Session) refuseBegun(id snapshot.ID) error {
	b, runs, ok, err := s.rec.Begun(filepath.Join(s.o.Tree.Store, "lock"))
	if err != nil || !ok || b.ID != id {
		return err
	}
	e := &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("the command of %s still runs", id),
		Hint: "ask again when it has ended; deployx diff without an ID shows what is in the tree now",
	}
	if !runs {
		e.Msg = fmt.Sprintf("the command of %s was cut off, and what it changed is not recorded yet", id)
		e.Hint = "the next command or rollback records it, as deployx restore does; deployx diff without an ID shows what is in the tree now"
	}
	return e
}

// Changes lists what differs, in path order.
func (c Comparison) Changes(ctx context.Context, visit func(snapshot.Change) error) error {
	return c.drv.Changes(ctx, c.below, c.layers, func(ch snapshot.Change) error {
		ch.SplitLink = ch.SplitLink || slices.Contains(c.split, ch.Path)
		return visit(ch)
	})
}

// ByPath lists the same without renames: what was in a renamed directory is gone from
// the one path and new at the other.
func (c Comparison) ByPath(ctx context.Context, visit func(snapshot.Change) error) error {
	if d, ok := c.drv.(snapshot.Renamer); ok {
		return d.ChangesByPath(ctx, c.below, c.layers, visit)
	}
	return c.Changes(ctx, visit)
}

// Renames lists what ByPath does not tell.
func (c Comparison) Renames(ctx context.Context, visit func(snapshot.Change) error) error {
	if _, ok := c.drv.(snapshot.Renamer); !ok {
		return nil
	}
	return c.Changes(ctx, func(ch snapshot.Change) error {
		if ch.Kind != snapshot.ChangeRenamed {
			return nil
		}
		return visit(ch)
	})
}

// Before opens a file as it was.
func (c Comparison) Before(ctx context.Context, path string) (io.ReadCloser, error) {
	return c.drv.Open(ctx, c.below, path)
}

// After opens a file as it became.
func (c Comparison) After(ctx context.Context, path string) (io.ReadCloser, error) {
	return c.drv.Open(ctx, append(slices.Clone(c.below), c.layers...), path)
}
