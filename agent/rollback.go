package agent

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/sirupsen/logrus"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

// rollback is a request to undo. It is noted in the journal.
type rollback struct {
	ID      snapshot.ID     `json:"snapshot_id,omitempty"`
	Batch   string          `json:"batch_id,omitempty"`
	Command string          `json:"command_id,omitempty"` // it was named by this
	Tree    string          `json:"tree"`
	DryRun  bool            `json:"dry_run,omitempty"`
	Drift   session.OnDrift `json:"drift,omitempty"`
	// Restart the units of stale processes.
	Restart bool `json:"restart_stale,omitempty"`
}

func (b rollback) key() key {
	if b.Batch != "" {
		return key{kindUnbatch, b.Batch}
	}
	return key{kindRollback, string(b.ID)}
}

func (b rollback) options() session.RollbackOptions {
	return session.RollbackOptions{DryRun: b.DryRun, Drift: b.Drift}
}

func readRollback(f *fields) rollback {
	b := rollback{Tree: f.text("tree", 4096), DryRun: f.flag("dry_run", false)}
	b.Restart = f.flag("restart_stale", false)
	if f.has("action") {
		if s := f.text("action", 100); s != "rollback" {
			f.wrong("action", `"rollback"`)
		}
	}
	switch b.Drift = session.OnDrift(f.text("drift", 100)); b.Drift {
	case "", session.DriftKeep, session.DriftRefuse, session.DriftDrop:
	default:
		f.wrong("drift", `"keep", "refuse" or "drop"`)
	}
	return b
}

func (a *Agent) rollbackCommand(r *request) (any, error) {
	b := readRollback(r.fields)
	b.ID, b.Command = snapshotID(r.fields, "snapshot_id"), r.id("command_id")
	if b.ID == "" && b.Command == "" {
		r.wrong("snapshot_id", "the id of a snapshot, or command_id with that of a command")
	}
	return a.acceptRollback(r, b)
}

func (a *Agent) rollbackBatch(r *request) (any, error) {
	b := readRollback(r.fields)
	if b.Batch = r.id("batch_id"); b.Batch == "" {
		r.wrong("batch_id", "the id of a batch")
	}
	return a.acceptRollback(r, b)
}

// acceptRollback finds the tree, which may mean reading records, on a goroutine
// of its own, and puts the rollback in that tree's queue.
func (a *Agent) acceptRollback(r *request, b rollback) (any, error) {
	if r.err != nil {
		return nil, r.err
	}
	// The order of requests holds for a tree that is named, or the only one.
	if b.Tree == "" && len(a.trees.all()) == 1 {
		b.Tree = a.trees.all()[0].path
	}
	if b.Tree != "" {
		return errLaterOr(a.queueRollback(r, b))
	}
	a.wg.Go(func() {
		t, err := a.trees.holding("", b.heldBy, b.missing())
		if err == nil {
			b.Tree = t.path
			err = a.queueRollback(r, b)
		}
		if err != nil {
			a.refuseRollback(r, b, err)
			a.answer(r, nil, err)
		}
	})
	return nil, errLater
}

func errLaterOr(err error) (any, error) {
	if err == nil {
		err = errLater
	}
	return nil, err
}

func (b rollback) missing() error {
	if b.Batch != "" {
		return fail(snapshot.CodeUnknownBatch, fmt.Sprintf("no tree has a batch %q", b.Batch), "")
	}
	return fail(snapshot.CodeUnknownSnapshot, fmt.Sprintf("no tree has a snapshot %q of command %q", b.ID, b.Command), "")
}

// heldBy says whether a record knows what is to be undone, undone already or
// not.
func (b rollback) heldBy(rec *snapshot.Record) (bool, error) {
	if b.ID != "" {
		_, err := rec.Snapshot(b.ID)
		return err == nil, notUnknown(err)
	}
	ids, err := rec.All()
	for _, id := range ids {
		s, err := rec.Snapshot(id)
		if err != nil {
			return false, err
		}
		if b.Batch != "" && s.BatchID == b.Batch || b.Command != "" && s.CommandID == b.Command {
			return true, nil
		}
	}
	return false, err
}

// notUnknown drops the error that says that something is not there.
func notUnknown(err error) error {
	switch snapshot.CodeOf(err) {
	case snapshot.CodeUnknownSnapshot, snapshot.CodeUnknownBatch, snapshot.CodeNotFound:
		return nil
	}
	return err
}

func (a *Agent) queueRollback(r *request, b rollback) error {
	t, err := a.place(r, &b.Tree)
	if err != nil {
		return err
	}
	t.put(&job{
		drop: func(err error) { a.refuseRollback(r, b, err); a.answer(r, nil, err) },
		do:   func(ctx context.Context, s Session) { a.runRollback(ctx, s, r, b) },
	})
	return nil
}

// runRollback carries a rollback out and reports it.
func (a *Agent) runRollback(ctx context.Context, s Session, r *request, b rollback) {
	err := b.find(s)
	var u session.Undo
	var again bool
	if err == nil {
		again, err = a.undoneBefore(s, b)
	}
	if again && err == nil {
		a.answer(r, map[string]any{"status": "completed", "duplicate": true}, nil)
		return
	}
	if err == nil {
		u, err = a.rollBack(ctx, s, b, true)
	} else {
		a.refuseRollback(r, b, err)
	}
	if err != nil {
		a.answer(r, nil, err)
		return
	}
	a.answer(r, a.rolledBack(b, u, nil), nil)
}

// find resolves a rollback that was named by its command.
func (b *rollback) find(s Session) error {
	if b.ID != "" || b.Batch != "" {
		return nil
	}
	rec, err := s.Record()
	if err != nil {
		return err
	}
	for e, err := range rec.Chain(rec.Head().Snapshot) {
		if err != nil {
			return err
		}
		if e.CommandID == b.Command {
			b.ID = e.ID
			return nil
		}
	}
	return b.missing()
}

// undoneBefore sends the result of a rollback again that is asked for a second
// time, after it was done: a backend does that when it lost the first answer.
func (a *Agent) undoneBefore(s Session, b rollback) (bool, error) {
	if b.DryRun || !a.journal.knows(b.key()) {
		return false, nil
	}
	rec, err := s.Record()
	if err != nil || b.applied(rec) {
		return false, err
	}
	lines, err := a.journal.eventsOf(b.key())
	if err != nil {
		return false, err
	}
	for _, l := range lines {
		var done wire.AgentRolledBack
		if l.Name == "rollback_completed" && json.Unmarshal(l.Payload, &done) == nil && done.Success {
			events, err := a.journal.revive(b.key())
			a.outbox.add(events...)
			return true, err
		}
	}
	return false, nil
}

func (b rollback) applied(rec *snapshot.Record) bool {
	if b.Batch != "" {
		_, err := rec.FirstOfBatch(b.Batch)
		return err == nil
	}
	_, err := rec.Above(b.ID)
	return err == nil
}

// rollBack rolls back and reports it; asked says that a backend asked for just
// this.
func (a *Agent) rollBack(ctx context.Context, s Session, b rollback, asked bool) (session.Undo, error) {
	if !b.DryRun {
		a.log.WithField("tree", s.Tree().Path).Infof("Rolling back snapshot %s", b.name())
		note, err := json.Marshal(b)
		if err != nil {
			return session.Undo{}, err
		}
		_, onDisk, err := a.journal.see(b.key(), note, true)
		if err == nil && onDisk != nil {
			err = onDisk()
		}
		if err != nil {
			return session.Undo{}, fmt.Errorf("note the request: %w", err)
		}
		if asked {
			a.tell(b.legacy("status"), wire.Outcome{SnapshotID: string(b.ID), BatchID: b.Batch, Status: "in_progress", Message: "Rolling back " + b.name()})
		}
	}
	u, err := s.Rollback(ctx, session.Target{ID: b.ID, Batch: b.Batch}, b.options())
	done := a.rolledBack(b, u, err)
	if err == nil {
		done.Restarted, done.NotRestarted, done.Warning = a.restartStale(ctx, b, u)
	}
	a.reportRollback(b, done)
	return u, err
}

// restartStale restarts the services that go on with what was undone, if that
// was asked for. The undo is done whatever comes of it.
func (a *Agent) restartStale(ctx context.Context, b rollback, u session.Undo) (units []string, not []session.NotRestarted, warning string) {
	if !b.Restart || b.DryRun {
		return nil, nil, ""
	}
	units, not = session.RestartStale(ctx, u.Stale)
	if err := session.RestartError(not); err != nil {
		a.log.WithError(err).WithField("tree", b.Tree).Warn("Not all stale processes were restarted")
		warning = err.Error()
	}
	return units, not, warning
}

// name says what is undone.
func (b rollback) name() string {
	if b.Batch != "" {
		return "batch " + b.Batch
	}
	return string(b.ID)
}

// legacy is the older event of that kind.
func (b rollback) legacy(kind string) string {
	if b.Batch != "" {
		return "batch_rollback_" + kind
	}
	return "rollback_" + kind
}

// rolledBack is the payload of rollback_completed.
func (a *Agent) rolledBack(b rollback, u session.Undo, err error) wire.AgentRolledBack {
	done := wire.AgentRolledBack{RolledBack: wire.Rollback(u), CommandID: b.Command}
	done.SnapshotID, done.BatchID, done.DryRun = string(b.ID), b.Batch, b.DryRun
	if err != nil {
		f := failure(err)
		done.Success, done.Error, done.Code, done.Paths, done.Processes = false, f.Message, f.Code, f.Paths, f.Processes
	}
	return done
}

// reportRollback makes the result last, in both generations' words.
func (a *Agent) reportRollback(b rollback, done wire.AgentRolledBack) {
	if b.DryRun {
		a.tell("rollback_completed", done)
		return
	}
	if done.Success {
		a.log.WithFields(logrus.Fields{"tree": b.Tree, "verified": done.Verified}).Infof("Rolled back %d snapshots", len(done.RolledBack.RolledBack))
	} else {
		a.log.WithField("code", done.Code).Warnf("Could not roll back %s: %s", b.name(), done.Error)
	}
	a.noteResult(auditLine{Event: "rollback", SnapshotID: string(b.ID), BatchID: b.Batch, Tree: b.Tree, OK: done.Success, Code: done.Code, Message: done.Error})
	status, message := "completed", fmt.Sprintf("Rolled back %d snapshots", len(done.RolledBack.RolledBack))
	if !done.Success {
		status, message = "failed", done.Error
	}
	old := wire.Outcome{SnapshotID: done.SnapshotID, BatchID: done.BatchID, Message: message}
	first := old
	first.Status = status
	a.tell(b.legacy("status"), first)
	old.Success, old.Error, old.Code = &done.Success, done.Error, done.Code
	k := b.key()
	result, completed := a.event(k, b.Tree, b.legacy("result"), old), a.event(k, b.Tree, "rollback_completed", done)
	result.once, completed.final = true, true
	a.publish(k, result, completed)
}

// refuseRollback tells of a rollback that was not tried.
func (a *Agent) refuseRollback(_ *request, b rollback, err error) {
	a.tell("rollback_completed", a.rolledBack(b, session.Undo{}, err))
	f := failure(err)
	a.tell(b.legacy("result"), wire.Outcome{
		SnapshotID: string(b.ID), BatchID: b.Batch, Success: new(bool), Message: f.Message, Error: f.Message, Code: f.Code,
	})
}

// settleRollback reports a rollback that the agent's end cut off. The record
// knows: moving its head is what a rollback is.
func (a *Agent) settleRollback(b rollback) {
	err := errRestarted
	_, rec := a.recordOf(b.Tree)
	if rec != nil && !b.applied(rec) {
		err = nil
	}
	done := a.rolledBack(b, session.Undo{}, err)
	a.reportRollback(b, done)
}
