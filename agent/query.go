package agent

import (
	"bytes"
	"context"
	"errors"
	"time"

	"deployx/internal/wire"
	"deployx/snapshot"
)

// maxListed bounds a list of snapshots, maxChanges one of changes, so that they
// fit into one message.
const (
	maxListed  = 500
	maxChanges = 1000
	maxPatch   = 64 << 10
)

// reading opens the tree of a request that reads and its record.
func (a *Agent) reading(ctx context.Context, path string) (Session, *snapshot.Record, error) {
	t, err := a.trees.pick(path)
	if err != nil {
		return nil, nil, err
	}
	s, err := t.opened(ctx)
	if err != nil {
		return nil, nil, err
	}
	rec, err := s.Record()
	return s, rec, err
}

// readingHolder is reading for a request that names a snapshot, or a batch, and
// perhaps no tree.
func (a *Agent) readingHolder(ctx context.Context, path string, b rollback) (Session, *snapshot.Record, error) {
	t, err := a.trees.holding(path, b.heldBy, b.missing())
	if err != nil {
		return nil, nil, err
	}
	return a.reading(ctx, t.path)
}

func (a *Agent) snapshotInfo(ctx context.Context, r *request) (string, any, error) {
	const event = "snapshot_info_result"
	id, path := snapshotID(r.fields, "snapshot_id"), r.text("tree", 4096)
	out := wire.SnapshotInfo{SnapshotID: string(id)}
	info, err := func() (any, error) {
		if id == "" {
			r.wrong("snapshot_id", "the id of a snapshot")
		}
		if r.err != nil {
			return nil, r.err
		}
		s, rec, err := a.readingHolder(ctx, path, rollback{ID: id})
		if err != nil {
			return nil, err
		}
		e, err := rec.Snapshot(id)
		if err != nil {
			return nil, err
		}
		m := wire.Describe(e, s.Tree(), state(rec, id), time.Now())
		if n, err := s.Size(ctx, e); err == nil {
			m.SizeBytes = n
		}
		return m, nil
	}()
	out.Info, out.Success = info, err == nil
	out.Error, out.Code = words(err)
	return event, out, err
}

func state(rec *snapshot.Record, id snapshot.ID) string {
	if _, err := rec.Above(id); err != nil {
		return "rolled_back"
	}
	return "applied"
}

// words are an error's message and code, for a result that carries both.
func words(err error) (message, code string) {
	if err == nil {
		return "", ""
	}
	return err.Error(), string(codeOf(err))
}

func (a *Agent) batchSnapshots(ctx context.Context, r *request) (string, any, error) {
	id, path := r.id("batch_id"), r.text("tree", 4096)
	out := wire.SnapshotInfo{BatchID: id}
	info, err := func() (any, error) {
		if id == "" {
			r.wrong("batch_id", "the id of a batch")
		}
		if r.err != nil {
			return nil, r.err
		}
		s, rec, err := a.readingHolder(ctx, path, rollback{Batch: id})
		if err != nil {
			return nil, err
		}
		list, err := history(s, rec, func(e snapshot.Snapshot) bool { return e.BatchID == id })
		return map[string]any{"batch_id": id, "count": len(list.Snapshots), "snapshots": list.Snapshots, "truncated": list.Truncated}, err
	}()
	if out.Success = err == nil; out.Success {
		out.Info = info
	}
	out.Error, out.Code = words(err)
	return "batch_snapshots_result", out, err
}

func (a *Agent) listSnapshots(ctx context.Context, r *request) (string, any, error) {
	path := r.text("tree", 4096)
	list, err := func() (wire.SnapshotList, error) {
		if r.err != nil {
			return wire.SnapshotList{}, r.err
		}
		s, rec, err := a.reading(ctx, path)
		if err != nil {
			return wire.SnapshotList{}, err
		}
		return history(s, rec, func(snapshot.Snapshot) bool { return true })
	}()
	if list.Snapshots == nil {
		list.Snapshots, list.Batches = []wire.Metadata{}, map[string][]string{}
	}
	list.Success = err == nil
	list.Error, list.Code = words(err)
	return "snapshots_list_result", list, err
}

// history lists the entries that are wanted, newest first, applied or not.
func history(s Session, rec *snapshot.Record, want func(snapshot.Snapshot) bool) (list wire.SnapshotList, err error) {
	list = wire.SnapshotList{Snapshots: []wire.Metadata{}, Batches: map[string][]string{}, Tree: s.Tree().Path}
	applied := map[snapshot.ID]bool{}
	for e, err := range rec.Chain(rec.Head().Snapshot) {
		if err != nil {
			return list, err
		}
		applied[e.ID] = true
	}
	ids, err := rec.All()
	now := time.Now()
	for i := len(ids) - 1; i >= 0 && err == nil; i-- {
		var e snapshot.Snapshot
		if e, err = rec.Snapshot(ids[i]); err != nil || !want(e) {
			continue
		}
		if len(list.Snapshots) == maxListed {
			list.Truncated = true
			break
		}
		state := "rolled_back"
		if applied[e.ID] {
			state = "applied"
		}
		m := wire.Describe(e, s.Tree(), state, now)
		m.Command = head(m.Command, 512)
		list.Snapshots = append(list.Snapshots, m)
		if e.BatchID != "" {
			list.Batches[e.BatchID] = append([]string{string(e.ID)}, list.Batches[e.BatchID]...)
		}
	}
	return list, err
}

func (a *Agent) diff(ctx context.Context, r *request) (string, any, error) {
	id, path, patch := snapshotID(r.fields, "snapshot_id"), r.text("tree", 4096), r.flag("patch", false)
	out := wire.Diff{SnapshotID: string(id), Changes: []snapshot.Change{}}
	err := func() error {
		if id == "" {
			r.wrong("snapshot_id", "the id of a snapshot")
		}
		if r.err != nil {
			return r.err
		}
		s, _, err := a.readingHolder(ctx, path, rollback{ID: id})
		if err != nil {
			return err
		}
		return fill(ctx, s, id, patch, &out)
	}()
	out.Success = err == nil
	out.Error, out.Code = words(err)
	return "diff_result", out, err
}

// errFull ends a list that has become too long.
var errFull = errors.New("too long")

func fill(ctx context.Context, s Session, id snapshot.ID, patch bool, out *wire.Diff) error {
	err := s.Changes(ctx, id, func(c snapshot.Change) error {
		if len(out.Changes) == maxChanges {
			return errFull
		}
		out.Changes = append(out.Changes, c)
		return nil
	})
	if err == nil && patch {
		var b bounded
		err = s.Patch(ctx, id, &b)
		out.Patch = b.String()
	}
	if errors.Is(err, errFull) {
		out.Truncated, err = true, nil
	}
	return err
}

// bounded takes the start of a patch.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxPatch {
		return 0, errFull
	}
	return b.Buffer.Write(p)
}
