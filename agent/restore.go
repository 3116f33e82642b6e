package agent

import (
	"context"
	"fmt"
	"strings"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

// restorePrefix is how a legacy backend's restore button asks for a rollback.
const restorePrefix = "RESTORE_BACKUP:"

// restores is the snapshot that a legacy backend's restore button names.
func (c *command) restores() (snapshot.ID, bool) {
	id, ok := strings.CutPrefix(c.Text, restorePrefix)
	return snapshot.ID(strings.TrimSpace(id)), ok && c.Legacy
}

// restore is what that button does.
func (a *Agent) restore(ctx context.Context, s Session, c *command, id snapshot.ID) {
	u, err := a.rollBack(ctx, s, rollback{ID: id, Tree: c.Tree}, false)
	a.restored(c, id, u, err)
}

// restored reports it.
func (a *Agent) restored(c *command, id snapshot.ID, u session.Undo, err error) {
	done := wire.AgentCompleted{Completed: wire.Completed{CommandID: c.ID, Command: c.Text, Success: true, CWD: u.Dir, DurationMS: u.Duration.Milliseconds()}}
	what := "Rolled back " + undone(u, id)
	if err != nil {
		done, what = failed(c, err), "Roll back "+string(id)
	}
	a.noteCompleted(done, c.Tree)
	d := deployment(c, done)
	d.DisplayCmd = what
	e := a.event(c.key(), c.Tree, "deployment_command_completed", d)
	e.final, e.once = true, true
	a.publish(c.key(), e)
}

// undone names what a rollback undid, for people.
func undone(u session.Undo, id snapshot.ID) string {
	switch len(u.Dropped) {
	case 0:
		return string(id)
	case 1:
		return oneLine(u.Dropped[0].Command)
	}
	return fmt.Sprintf("%d commands", len(u.Dropped))
}

func (a *Agent) redo(r *request) (any, error) {
	tree := r.text("tree", 4096)
	n := int(r.number("count", 1, 1, 1e6))
	b := rollback{DryRun: r.flag("dry_run", false), Drift: session.OnDrift(r.text("drift", 100))}
	if b.Drift != "" && b.Drift != session.DriftKeep && b.Drift != session.DriftRefuse {
		r.wrong("drift", `"keep" or "refuse"`)
	}
	t, err := a.place(r, &tree)
	if err != nil {
		return nil, err
	}
	t.put(&job{
		drop: func(err error) { a.answer(r, nil, err) },
		do: func(ctx context.Context, s Session) {
			u, err := s.Redo(ctx, n, b.options())
			done := wire.Redo(u, err == nil)
			if err != nil {
				f := failure(err)
				done.Error, done.Code = f.Message, f.Code
			}
			a.noteResult(auditLine{Event: "redo", Tree: tree, OK: err == nil, Code: done.Code, Message: done.Error})
			a.tell("redo_completed", done)
			var answer any = done
			a.answer(r, answer, err)
		},
	})
	return nil, errLater
}
