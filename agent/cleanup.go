package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"deployx/internal/wire"
	"deployx/snapshot"
)

var errKeeps = fail(snapshot.CodeUnsupported, "this tree's snapshots cannot be cleaned up: the session keeps all of them", "")

// expire lets the old snapshots of a tree go.
func (a *Agent) expire(ctx context.Context, s Session, olderThan time.Duration) (int, error) {
	r, ok := s.(Retainer)
	if !ok {
		return 0, errKeeps
	}
	n, err := r.Expire(ctx, olderThan)
	a.tellCleaned(s.Tree().Path, n)
	return n, err
}

func (a *Agent) tellCleaned(tree string, n int) {
	if n > 0 {
		a.log.WithField("tree", tree).Infof("Cleaned up %d old snapshots", n)
	}
}

// cleanUp is the background task.
func (a *Agent) cleanUp(ctx context.Context) {
	if a.o.Retention < 0 {
		return
	}
	tick := time.NewTicker(a.o.CleanupInterval)
	defer tick.Stop()
	for {
		for _, t := range a.trees.all() {
			a.cleanOpen(ctx, t)
		}
		if a.o.Clean != nil {
			if err := snapshot.NewState(a.o.State).Each(func(t snapshot.Tree, err error) { a.cleanKnown(ctx, t, err) }); err != nil {
				a.notCleaned(ctx, a.o.State, err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// cleanOpen cleans up a tree that has a session.
func (a *Agent) cleanOpen(ctx context.Context, t *tree) {
	s := t.current()
	if s == nil || !t.cleaning.TryLock() {
		return
	}
	done := make(chan struct{})
	a.wg.Go(func() {
		defer close(done)
		defer t.cleaning.Unlock()
		_, err := a.expire(ctx, s, a.o.Retention)
		a.notCleaned(ctx, t.path, err)
	})
	enough := time.NewTimer(a.o.CleanPatience)
	defer enough.Stop()
	select {
	case <-done:
	case <-enough.C:
	case <-ctx.Done():
	}
}

// cleanKnown cleans up a tree that has none, if requests may name it.
func (a *Agent) cleanKnown(ctx context.Context, t snapshot.Tree, err error) {
	if ctx.Err() != nil || err == nil && (!a.trees.allows(t.Path) || a.trees.serves(t.Path)) {
		return
	}
	n := 0
	if err == nil {
		n, err = a.o.Clean(ctx, t, a.o.Retention)
	}
	a.tellCleaned(t.Path, n)
	if snapshot.CodeOf(err) == snapshot.CodeTreeBusy {
		a.log.WithError(err).WithField("tree", t.Path).Debug("Cleaned up another time")
		return
	}
	a.notCleaned(ctx, t.Path, err)
}

func (a *Agent) notCleaned(ctx context.Context, tree string, err error) {
	if err != nil && !errors.Is(err, errKeeps) && ctx.Err() == nil {
		a.log.WithError(err).WithField("tree", tree).Error("Could not clean up")
	}
}

// cleanupSnapshots is clean-up by hand.
func (a *Agent) cleanupSnapshots(ctx context.Context, r *request) (string, any, error) {
	hours := r.number("older_than_hours", 24, 0, 1e6)
	path := r.text("tree", 4096)
	n, err := 0, r.err
	if err == nil {
		var s Session
		if s, _, err = a.reading(ctx, path); err == nil {
			n, err = a.expire(ctx, s, time.Duration(hours*float64(time.Hour)))
		}
	}
	out := wire.Outcome{Success: new(err == nil), Removed: &n, Message: fmt.Sprintf("Cleaned up %d old snapshots", n), Tree: path}
	if err != nil {
		out.Message = err.Error()
	}
	out.Error, out.Code = words(err)
	a.noteResult(auditLine{Event: r.event, Tree: path, OK: err == nil, Code: out.Code, Message: out.Message})
	return "cleanup_result", out, err
}

// cleanupSnapshot lets one snapshot go: an applied one that none is below, or one
// that was rolled back and that none stands on. For one that is gone already
// that is a success.
func (a *Agent) cleanupSnapshot(ctx context.Context, r *request) (string, any, error) {
	id, path, older := snapshotID(r.fields, "snapshot_id"), r.text("tree", 4096), r.flag("include_older", false)
	if id == "" {
		r.wrong("snapshot_id", "the id of a snapshot")
	}
	n, err := 0, r.err
	if err == nil {
		n, path, err = a.forget(ctx, id, path, older)
	}
	out := wire.Outcome{SnapshotID: string(id), Success: new(err == nil), Removed: &n, Message: fmt.Sprintf("Cleaned up %d snapshots", n), Tree: path}
	if err != nil {
		out.Message = err.Error()
	}
	out.Error, out.Code = words(err)
	a.noteResult(auditLine{Event: r.event, SnapshotID: string(id), Tree: path, OK: err == nil, Code: out.Code, Message: out.Message})
	return "cleanup_result", out, err
}

func (a *Agent) forget(ctx context.Context, id snapshot.ID, path string, older bool) (n int, tree string, err error) {
	s, _, err := a.readingHolder(ctx, path, rollback{ID: id})
	if snapshot.CodeOf(err) == snapshot.CodeExpired && err != nil {
		return 0, path, nil
	}
	if err != nil {
		return 0, path, err
	}
	tree = s.Tree().Path
	f, ok := s.(Forgetter)
	if !ok {
		return 0, tree, errKeeps
	}
	if n, err = f.Forget(ctx, id, older); n > 0 {
		a.log.WithField("tree", tree).Infof("Cleaned up %d snapshots: %s", n, id)
	}
	return n, tree, err
}
