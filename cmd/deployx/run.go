package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

type runFlags struct {
	timeout    time.Duration
	noSnapshot bool
	batch      string
	tty        bool
}

func (a *app) runCmd() *cobra.Command {
	var f runFlags
	c := &cobra.Command{
		Use:   "run [flags] -- COMMAND...",
		Short: "Run a command in the tree, with a snapshot just before it",
		Long: `Run a command in the tree's shell, with a snapshot just before it.

  deployx run --tree /srv/app -- 'git pull && npm ci'
  deployx run --timeout 10m -- ./migrate --all

One argument is shell text; several are one command line that is passed exactly.
The first run makes a directory a tree (--tree DIR). What the command prints is
passed on; the last line on stderr names the snapshot, what changed, and how to
undo it.

A process that holds the tree (its working directory is there, or a file that it
writes) keeps the layer that it writes to from being sealed. With --on-pinned
seal, the default, what has changed is then copied out of that layer before and
after the command: the command has its own rollback point, and the process goes
on. With share it runs in that same layer without: one rollback point for both,
and deployx says so. With refuse it does not run; with stop the process is ended
first. deployx status names such processes.

Exit status: the command's (128+n if signal n ended it, 124 after --timeout,
130 when interrupted); 125 if deployx itself failed, and then the command did
not run or what it did is recorded as unfinished.`,
		RunE: func(c *cobra.Command, args []string) error { return a.run(c.Context(), f, args) },
	}
	c.Flags().SetInterspersed(false) // what follows the first word is the command's
	limitVar(c.Flags(), &f.timeout, "timeout", "stop the command after this time (exit status 124; 0: never)")
	c.Flags().BoolVar(&f.noSnapshot, "no-snapshot", false, "run without a rollback point; an older one takes this command with it")
	c.Flags().StringVar(&f.batch, "batch", "", "count the command to the batch with this `id`")
	c.Flags().BoolVarP(&f.tty, "tty", "t", false, "run on a terminal of its own")
	a.session.register(c, true)
	return c
}

func (a *app) run(ctx context.Context, f runFlags, args []string) error {
	if len(args) == 0 {
		return usageError{errors.New("nothing to run: deployx run -- COMMAND")}
	}
	if expected := wire.ExpectedOfID(f.batch); expected != "" {
		return usageError{fmt.Errorf("--batch: expected %s, not %q", expected, f.batch)}
	}
	c := session.Command{Text: text(args), ID: uuid.NewString(), BatchID: f.batch, NoSnapshot: f.noSnapshot, Timeout: f.timeout}
	r, err := a.runOne(ctx, c, f.tty)
	if err != nil {
		a.notRun(c, err)
		return err
	}
	return statusOf(r.Snapshot)
}

func (a *app) runOne(ctx context.Context, c session.Command, tty bool) (r session.Result, err error) {
	t, err := a.toRun(ctx)
	if err != nil {
		return r, err
	}
	err = a.with(ctx, t, func(s *session.Session) error {
		e := a.newEvents(c.ID, c.BatchID, nil)
		stop, err := a.wire(&c, tty, e)
		if err != nil {
			return err
		}
		defer stop()
		c.Started = e.started
		c.Done = func(done session.Result) { a.finished(e, done, "command_completed") }
		r, err = s.Run(ctx, c)
		return err
	})
	return r, err
}

// notRun prints the event of a command that deployx could not run.
func (a *app) notRun(c session.Command, err error) {
	if a.json {
		a.newEvents(c.ID, c.BatchID, nil).print(wire.AgentCompleted{Code: string(codeOf(err)), Completed: wire.Completed{
			Event: "command_completed", CommandID: c.ID, BatchID: c.BatchID, Command: c.Text, ExitCode: exitFailed, Error: err.Error(),
		}})
	}
}

func statusOf(s snapshot.Snapshot) error {
	if s.ExitCode == 0 {
		return nil
	}
	return exitStatus(s.ExitCode)
}

// text makes one command line of the arguments: one is shell text as it is,
// several are quoted.
func text(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = quote(a)
	}
	return strings.Join(quoted, " ")
}

const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+,"

// quote makes one word of s for any shell (POSIX XCU 2.2.2, single quotes). A
// word with = is quoted too, lest the first be taken for an assignment.
func quote(s string) string {
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// wire gives a command its input and output.
func (a *app) wire(c *session.Command, tty bool, e *events) (stop func(), err error) {
	stop = func() {}
	if c.Env, err = a.extraEnv(); err != nil {
		return stop, err
	}
	c.Stdin, c.Stdout, c.Stderr = a.in, a.out, a.err
	if onePlace(a.out, a.err) { // by one pipe, which keeps the order
		c.Stderr = a.out
	}
	if a.json {
		c.Stdout, c.Stderr = e.stream("stdout"), e.stream("stderr")
	}
	if tty {
		if t := os.Getenv("TERM"); t != "" { // of the terminal that we are on now
			c.Env = append([]string{"TERM=" + t}, c.Env...)
		}
		c.TTY, stop, err = a.terminal(e)
	}
	return stop, err
}

// finished tells the outcome of a command: an event, or one line for people.
func (a *app) finished(e *events, r session.Result, event string) {
	if a.json {
		e.flush()
		done := wire.Complete(r)
		done.Event, done.Index = event, e.index
		e.print(done)
		return
	}
	a.summary(r)
}

func (a *app) summary(r session.Result) {
	a.circumstances(r)
	s := r.Snapshot
	how := "undo: deployx rollback " + short(s.ID)
	if s.NoSnapshot {
		how = "no snapshot"
	}
	a.say("deployx: %s +%d ~%d -%d  %s%s", short(s.ID), s.Changes.Added, s.Changes.Modified, s.Changes.Deleted, ended(s), how)
	if len(s.SplitLinks) > 0 {
		a.say("deployx: these names were hard links and are files of their own now: %s (docs/design.md, \"Hard links\")", splitText(s.SplitLinks))
	}
}

// splitText names what came apart, and that there may be more of it.
func splitText(paths []string) string {
	var out []string
	for _, p := range paths {
		out = append(out, printable(p))
	}
	if len(out) == snapshot.SplitLinksMost {
		out = append(out, "...")
	}
	return strings.Join(out, ", ")
}

// circumstances tells what a person should know of the processes around a
// command.
func (a *app) circumstances(r session.Result) {
	s := r.Snapshot
	if len(r.Stale) > 0 {
		a.say("deployx: in the tree as it was before the first command: %s: sees none of this, and what it writes is not seen; cd \"$PWD\" or a restart moves it", names(r.Stale))
	}
	switch {
	case s.Mode == snapshot.ModeSealed: // it has what it needs
	case len(s.PinnedBy) > 0 && s.SharedWith != "":
		a.say("deployx: one rollback point with %s, for the tree is held by %s", short(s.SharedWith), names(s.PinnedBy))
	case len(s.PinnedBy) > 0:
		a.say("deployx: the tree is held by %s: later commands share this one's rollback point until that ends", names(s.PinnedBy))
	}
	for _, m := range r.Uncovered {
		a.say("deployx: not covered by undo: %s", mountText(m))
	}
	for _, p := range r.Survivors {
		a.say("deployx: still running: %s (pid %d)", printable(p.Name), p.PID)
	}
	if r.Restarted {
		a.say("deployx: the shell ended; the next command gets a new one")
	}
}

// mountText names a mount and what became of it.
func mountText(m snapshot.Mount) string {
	s := fmt.Sprintf("%s (%s", printable(m.Path), m.Type)
	if m.Change != "" {
		s += ", " + string(m.Change) + " by this command"
	}
	return s + ")"
}

// ended tells of an end that is not plain.
func ended(s snapshot.Snapshot) string {
	switch {
	case s.TimedOut:
		return "timed out; "
	case s.Interrupted:
		return "interrupted; "
	case s.Signal != "":
		return s.Signal + "; "
	case s.ExitCode != 0:
		return fmt.Sprintf("exit %d; ", s.ExitCode)
	}
	return ""
}

// names lists processes, each once with all its ways to hold the tree.
func names(hs []snapshot.Holder) string {
	var out []string
	for i, h := range hs {
		if i > 0 && hs[i-1].PID == h.PID {
			out[len(out)-1] = strings.TrimSuffix(out[len(out)-1], ")") + ", " + h.How + ")"
			continue
		}
		out = append(out, fmt.Sprintf("%s (pid %d: %s)", printable(h.Name), h.PID, h.How))
	}
	return strings.Join(out, ", ")
}

// shortID is as much of an id as tells snapshots apart: its time to a quarter of
// a microsecond (RFC 9562, section 6.2, method 3). Its first 13 characters are
// milliseconds, and drift often has the same as the command after it.
const shortID = 18

func short(id snapshot.ID) string { return string(id[:min(len(id), shortID)]) }
