package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

type rollbackFlags struct {
	batch       string
	last        int
	all, dryRun bool
	restart     bool
	drift       string
}

func (a *app) rollbackCmd() *cobra.Command {
	var f rollbackFlags
	c := &cobra.Command{
		Use:   "rollback (ID | --batch ID | --last N | --all)",
		Short: "Put the tree back to what it was before a command",
		Long: `Put the tree back to exactly what it was before a command: that command's layer
and every later one are dropped, newest first, all or nothing. For a batch that
is its first command's layer and all above. Nothing is deleted yet: deployx redo
takes the rollback back.

What others changed between the commands is kept: it stays in the tree, on top of
what the rollback goes back to. Where that cannot be, since a command changed the
same paths, the rollback is refused and names them. --drift drop drops what others
changed as well, --drift refuse refuses if there is any. A tree that running
processes hold is put back in place, and they are named: what they have open stays
the old file. With --on-pinned share or refuse the rollback is refused instead, and
with stop they are ended first. Processes that go on with files that were undone are
named afterwards; --restart-stale restarts their services, and names what it could
not restart.

Exit status: 0 done; 1 refused or failed, and the tree is as it was; 2 usage; 3
done, but stdout did not take the result; 4 done, but --restart-stale did not
restart all that it should have.`,
		ValidArgsFunction: a.completeID(false),
		RunE:              func(c *cobra.Command, args []string) error { return a.rollback(c.Context(), f, args) },
	}
	c.Flags().StringVar(&f.batch, "batch", "", "the whole batch with this `id`")
	someVar(c.Flags(), &f.last, "last", "the newest `N` commands")
	c.Flags().BoolVar(&f.all, "all", false, "everything, back to base")
	registerUndo(c, &f, "keep, refuse or drop")
	a.session.register(c, false)
	return c
}

func registerUndo(c *cobra.Command, f *rollbackFlags, drift string) {
	c.Flags().BoolVar(&f.dryRun, "dry-run", false, "tell what would be done and do nothing")
	c.Flags().BoolVar(&f.restart, "restart-stale", false, "restart the systemd services that go on with files that were undone")
	c.Flags().StringVar(&f.drift, "drift", string(session.DriftKeep), "with changes that others made: "+drift)
}

// options checks the flags; redo cannot drop what others wrote, for nothing
// would lead back to it.
func (f rollbackFlags) options(redo bool) (session.RollbackOptions, error) {
	d, may := session.OnDrift(f.drift), "keep, refuse or drop"
	if redo {
		may = "keep or refuse"
	}
	if d == session.DriftKeep || d == session.DriftRefuse || d == session.DriftDrop && !redo {
		return session.RollbackOptions{DryRun: f.dryRun, Drift: d}, nil
	}
	return session.RollbackOptions{}, usageError{fmt.Errorf("--drift is %s, not %q", may, f.drift)}
}

func (f rollbackFlags) target(rec *snapshot.Record, args []string) (session.Target, error) {
	t := session.Target{Batch: f.batch, Last: f.last, All: f.all}
	n := len(args)
	for _, set := range []bool{f.batch != "", f.last != 0, f.all} {
		if set {
			n++
		}
	}
	if n != 1 {
		return t, usageError{errors.New("say what to roll back: one ID, --batch ID, --last N or --all")}
	}
	if len(args) == 0 {
		return t, nil
	}
	var err error
	t.ID, err = rec.Resolve(args[0])
	return t, err
}

func (a *app) rollback(ctx context.Context, f rollbackFlags, args []string) error {
	o, err := f.options(false)
	if err != nil {
		return err
	}
	t, err := a.known()
	if err != nil {
		return a.undoFailed(f, args, err)
	}
	err = a.with(ctx, t, func(s *session.Session) error {
		target, err := f.target(s.Record(), args)
		if err != nil {
			return err
		}
		u, err := s.Rollback(ctx, target, o)
		if err != nil {
			return err
		}
		r := wire.Rollback(u)
		r.Restarted, r.NotRestarted = f.restartStale(ctx, u)
		return errors.Join(a.undone(u, r, string(target.ID), f.batch), notRestarted(r.NotRestarted))
	})
	return a.undoFailed(f, args, err)
}

// undone tells of a rollback.
func (a *app) undone(u session.Undo, r wire.RolledBack, id, batch string) error {
	if a.json {
		r.Event, r.SnapshotID, r.BatchID = "rollback_completed", id, batch
		return a.tellEvent(r, u.DryRun)
	}
	verb := "rolled back"
	if u.DryRun {
		verb = "would roll back"
	}
	a.tellUndo(u, verb)
	return nil
}

// undoFailed prints the event of a rollback that was refused.
func (a *app) undoFailed(f rollbackFlags, args []string, err error) error {
	var usage usageError
	if err == nil || !a.json || errors.As(err, &usage) || wasDone(err) {
		return err
	}
	r := wire.RolledBack{Event: "rollback_completed", BatchID: f.batch, RolledBack: []string{}, Error: err.Error(), Code: string(snapshot.CodeOf(err))}
	if len(args) == 1 {
		r.SnapshotID = args[0]
	}
	var e *snapshot.Error
	if errors.As(err, &e) {
		r.Paths = e.Paths
	}
	return errors.Join(err, a.encode(r))
}

// tellUndo lists what was undone, newest first.
func (a *app) tellUndo(u session.Undo, verb string) {
	for _, s := range u.Dropped {
		a.say("deployx: %s %s +%d ~%d -%d  %s", verb, short(s.ID), s.Changes.Added, s.Changes.Modified, s.Changes.Deleted, oneLine(deed(s), 60))
	}
	a.tellKept(u)
	if u.DryRun {
		return
	}
	a.tellStale(u)
	if u.Late {
		a.say("deployx: somebody wrote to the tree in the moment before: that went too; deployx redo shows it")
	}
	if u.InPlace {
		a.say("deployx: done in place, for the tree is held by %s: what they have open stays the old file", names(u.Holders))
	}
	where := fmt.Sprintf("the shell is in %s", printable(u.Dir))
	if u.Plain {
		where += "; the tree is a plain directory again"
	}
	a.say("deployx: %d undone in %s; %s; take it back: deployx redo", len(u.Dropped), u.Duration.Round(100*time.Microsecond), where)
}

// deed is what an entry did, in a word.
func deed(s snapshot.Snapshot) string {
	if s.Kind == snapshot.KindDrift {
		return "(changes made by others)"
	}
	return s.Command
}

// tellKept names what others changed and stays, as much of it as a person reads.
func (a *app) tellKept(u session.Undo) {
	k := wire.KeptIn(u)
	if k == nil {
		return
	}
	verb := "kept"
	if u.DryRun {
		verb = "would keep"
	}
	const most = 10
	for _, p := range k.Paths[:min(most, len(k.Paths))] {
		a.say("deployx: %s %s (changed by others)", verb, printable(p))
	}
	if more := k.Total - most; more > 0 {
		a.say("deployx: %s %d more", verb, more)
	}
}

// tellStale names who should be restarted.
func (a *app) tellStale(u session.Undo) {
	for _, p := range u.Stale[:min(10, len(u.Stale))] {
		who := fmt.Sprintf("%s (pid %d", printable(p.Name), p.PID)
		if p.Unit != "" {
			who += ", " + printable(p.Unit)
		}
		a.say("deployx: %s) goes on with what was there before: %s %s", who, p.Why, printable(p.Path))
	}
	if more := len(u.Stale) - 10; more > 0 {
		a.say("deployx: and %d more; --json lists them", more)
	}
}

// restartStale restarts what is stale, if that was asked for. The undo is done
// whatever comes of it.
func (f rollbackFlags) restartStale(ctx context.Context, u session.Undo) ([]string, []session.NotRestarted) {
	if !f.restart || u.DryRun {
		return nil, nil
	}
	return session.RestartStale(ctx, u.Stale)
}

// stillStale is the error of an undo that was done, but for a restart.
type stillStale struct{ error }

func notRestarted(not []session.NotRestarted) error {
	if err := session.RestartError(not); err != nil {
		return stillStale{err}
	}
	return nil
}

func (a *app) redoCmd() *cobra.Command {
	var f rollbackFlags
	c := &cobra.Command{
		Use:   "redo [N]",
		Short: "Take the newest rollback back (or the newest N)",
		Long: `Take the newest rollback back: its layers are shown again. Possible until
something new has been run. What others changed since the rollback is kept, or
where that cannot be the redo is refused, as for rollback.

Exit status: 0 done; 1 refused or failed, and the tree is as it was; 2 usage; 3
done, but stdout did not take the result; 4 done, but --restart-stale did not
restart all that it should have.`,
		RunE: func(c *cobra.Command, args []string) error { return a.redo(c.Context(), f, args) },
	}
	registerUndo(c, &f, "keep or refuse")
	a.session.register(c, false)
	return c
}

func (a *app) redo(ctx context.Context, f rollbackFlags, args []string) error {
	n := 1
	if len(args) > 0 {
		var err error
		if n, err = strconv.Atoi(args[0]); err != nil || n < 1 || len(args) > 1 {
			return usageError{fmt.Errorf("redo takes a number of rollbacks, 1 or more: not %q", strings.Join(args, " "))}
		}
	}
	o, err := f.options(true)
	if err != nil {
		return err
	}
	t, err := a.known()
	if err != nil {
		return err
	}
	return a.with(ctx, t, func(s *session.Session) error {
		u, err := s.Redo(ctx, n, o)
		if err != nil {
			return err
		}
		r := wire.Redo(u, true)
		r.Restarted, r.NotRestarted = f.restartStale(ctx, u)
		restart := notRestarted(r.NotRestarted)
		if a.json {
			return errors.Join(a.redone(r), restart)
		}
		if u.DryRun {
			for _, e := range u.Dropped {
				a.say("deployx: would bring back %s  %s", short(e.ID), oneLine(deed(e), 60))
			}
			a.tellKept(u)
			return nil
		}
		a.tellKept(u)
		a.tellStale(u)
		for _, e := range u.Dropped {
			a.say("deployx: brought back %s  %s", short(e.ID), oneLine(deed(e), 60))
		}
		a.say("deployx: %d done again in %s", len(u.Dropped), u.Duration.Round(100*time.Microsecond))
		return restart
	})
}

func (a *app) redone(r wire.Redone) error {
	r.Event = "redo_completed"
	return a.tellEvent(r, r.DryRun)
}
