package agent

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"deployx/internal/durable"
	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

// settleUnfinished reports the requests that the last run of the agent was
// cut off in. None is run again: the tree's record says whether the command
// was started, and if it was recorded, how it ended.
func (a *Agent) settleUnfinished() {
	rebooted, err := rebooted(a.dir)
	if err != nil {
		a.log.WithError(err).Error("Whether the host was booted anew cannot be told from now on")
	}
	a.rebooted = rebooted
	lines, err := a.journal.unfinished()
	if err != nil {
		a.log.WithError(err).Error("The requests that were cut off could not be read")
	}
	for _, l := range lines {
		if err := a.settle(l); err != nil {
			a.log.WithError(err).WithField("id", l.ID).Error("A request that was cut off could not be settled")
		}
	}
}

func (a *Agent) settle(l line) error {
	a.log.WithField("id", l.ID).Warnf("The %s was cut off when the agent ended", l.Kind)
	switch l.Kind {
	case kindCommand:
		c := &command{}
		if err := json.Unmarshal(l.Request, c); err != nil {
			return err
		}
		s, rec := a.recordOf(c.Tree)
		if id, ok := c.restores(); ok {
			a.settleRestore(c, rec, id)
			return nil
		}
		done, _ := a.whatBecame(c, rec, s)
		a.complete(c, done, nil)()
	case kindBatch:
		b := &batch{}
		if err := json.Unmarshal(l.Request, b); err != nil {
			return err
		}
		s, rec := a.recordOf(b.Tree)
		known, err := a.journal.eventsOf(key{l.Kind, l.ID})
		if err != nil {
			return err
		}
		a.resume(b, known, rec, s)
	case kindRollback, kindUnbatch:
		b := rollback{}
		if err := json.Unmarshal(l.Request, &b); err != nil {
			return err
		}
		a.settleRollback(b)
	}
	return nil
}

// settleRestore is settleRollback for a legacy backend's restore button.
func (a *Agent) settleRestore(c *command, rec *snapshot.Record, id snapshot.ID) {
	b := rollback{ID: id, Tree: c.Tree}
	err := errRestarted
	if rec != nil {
		if known, e := b.heldBy(rec); e == nil && known && !b.applied(rec) {
			err = nil
		}
	}
	a.restored(c, id, session.Undo{}, err)
}

// recordOf opens a tree's record; nil if it cannot be had.
func (a *Agent) recordOf(path string) (Session, *snapshot.Record) {
	t, err := a.trees.pick(path)
	if err == nil {
		var s Session
		if s, err = t.opened(a.ctx); err == nil {
			var rec *snapshot.Record
			if rec, err = s.Record(); err == nil {
				return s, rec
			}
		}
	}
	a.log.WithError(err).WithField("tree", path).Error("The record cannot be read")
	return nil, nil
}

// whatBecame finds out about a command that was noted and not reported.
func (a *Agent) whatBecame(c *command, rec *snapshot.Record, s Session) (done wire.AgentCompleted, started bool) {
	if rec == nil {
		return failed(c, errRestarted), true
	}
	if p, ok, err := rec.Running(); err == nil && ok && p.CommandID == c.ID {
		done = failed(c, errRestarted)
		done.SnapshotID, done.CWD = string(p.ID), p.Dir
		if p.NoSnapshot {
			done.SnapshotID = ""
		}
		return done, true
	}
	for p, err := range rec.Chain(rec.Head().Snapshot) {
		if err != nil {
			return failed(c, errRestarted), true
		}
		if p.CommandID != c.ID {
			continue
		}
		if p.Unfinished {
			done = failed(c, errRestarted)
			done.SnapshotID, done.CWD, done.Changes = string(p.ID), p.Dir, p.Changes
			return done, true
		}
		// Reported it was not, but recorded: that is what happened.
		return a.completed(c, session.Result{Snapshot: p, Dir: p.Dir, Tail: keptOutput(s, p.ID)}, nil), true
	}
	if a.rebooted { // the note of a command that began need not outlast the host
		return failed(c, errLost), true
	}
	return notRun(c, errNotStarted), false
}

// rebooted tells whether the host has been booted since it was asked last, which
// it keeps in dir; false the first time.
func rebooted(dir string) (bool, error) {
	name := filepath.Join(dir, "boot")
	now, err := os.ReadFile("/proc/sys/kernel/random/boot_id") // random(4)
	if err != nil {
		return true, err
	}
	last, err := os.ReadFile(name)
	if err == nil && string(last) == string(now) {
		return false, nil
	}
	first := errors.Is(err, fs.ErrNotExist)
	return !first, durable.Write(name, now)
}

// keptOutput is the end of a command's output as the session keeps it (see
// snapshot.State). id is from the record, not from the wire.
func keptOutput(s Session, id snapshot.ID) []byte {
	b, err := os.ReadFile(filepath.Join(s.Tree().Store, "output", string(id)))
	if err != nil {
		return nil // an empty output has no file
	}
	return b
}
