package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

func (a *Agent) commandJob(c *command, noted func() error) *job {
	j := &job{id: c.ID}
	if c.Stdin || c.TTY {
		j.input = newInput()
	}
	j.drop = func(err error) { a.complete(c, notRun(c, err), nil)() }
	j.do = func(ctx context.Context, s Session) {
		id, ok := c.restores()
		if !ok {
			a.runCommand(ctx, s, c, j, noted)
		} else if err := noted(); err != nil {
			j.drop(err)
		} else {
			a.restore(ctx, s, c, id)
		}
	}
	return j
}

// runCommand runs a command, if it is noted by then, and reports it.
func (a *Agent) runCommand(ctx context.Context, s Session, c *command, j *job, noted func() error) {
	st := a.newStream(c)
	run, last := a.sessionCommand(s, c, st, j.input, noted), func() {}
	reported := false
	run.Done = func(r session.Result) {
		reported = true
		j.over()
		last = a.complete(c, a.completed(c, r, st), st)
	}
	_, err := s.Run(ctx, run)
	if j.input != nil {
		j.input.close()
	}
	if err != nil && !reported {
		j.over()
		last = a.complete(c, a.notDone(ctx, c, err), st)
	} else if err != nil {
		a.log.WithError(err).WithField("command_id", c.ID).Error("The command was recorded, but the tree could not be made ready for the next")
	}
	last()
}

// notDone is the result of a command that the session could not run or record.
func (a *Agent) notDone(ctx context.Context, c *command, err error) wire.AgentCompleted {
	if errors.Is(err, errNotNoted) {
		return notRun(c, err)
	}
	if ctx.Err() != nil && codeOf(err) != codeInterrupted {
		err = errors.Join(errInterrupted, err)
	}
	return failed(c, err)
}

// sessionCommand is c as the session takes it. The command does not start before
// noted has returned.
func (a *Agent) sessionCommand(s Session, c *command, st *stream, in *input, noted func() error) session.Command {
	run := session.Command{
		Text: c.Text, ID: c.ID, BatchID: c.batch, CommandIndex: c.index, Metadata: c.Metadata, NoSnapshot: c.Bare,
		Env: append(slices.Clone(a.o.Env), c.Env...), Shell: c.Shell, Timeout: c.Timeout, Stdout: st.writer("stdout"), Stderr: st.writer("stderr"),
	}
	if c.Dir != "" {
		run.Dir = c.Dir
		if !filepath.IsAbs(c.Dir) {
			run.Dir = filepath.Join(s.Tree().Path, c.Dir)
		}
	}
	if in != nil {
		run.Stdin = in
	}
	if c.TTY {
		run.TTY = &shell.TTY{In: in, Out: st.writer("tty")}
	}
	run.Started = func(p snapshot.Snapshot) error {
		if err := noted(); err != nil {
			return err
		}
		a.started(c, p)
		return nil
	}
	return run
}

// maxShown is how much of a command is sent back with command_started.
const maxShown = 4096

func (a *Agent) started(c *command, p snapshot.Snapshot) {
	id := p.ID
	if p.NoSnapshot {
		id = ""
		a.log.WithField("command_id", c.ID).Infof("Running without a snapshot: %s", oneLine(c.Text))
	} else {
		a.log.WithFields(logrus.Fields{"command_id": c.ID, "snapshot_id": id, "tree": c.Tree}).
			Infof("Created snapshot %s for command: %s", id, oneLine(c.Text))
	}
	if c.Legacy {
		return
	}
	e := wire.Started{CommandID: c.ID, BatchID: c.batch, Command: head(c.Text, maxShown), SnapshotID: string(id), CWD: p.Dir}
	if c.batch != "" {
		e.Index = &c.index
	}
	a.tell("command_started", e)
}

// completed is the result of a command that ran.
func (a *Agent) completed(c *command, r session.Result, st *stream) wire.AgentCompleted {
	done := wire.AgentCompleted{Completed: wire.Complete(r), Warning: c.Warning}
	done.Truncated = done.Truncated || st != nil && st.dropped()
	switch s := r.Snapshot; {
	case s.Interrupted:
		done.Error, done.Code = "interrupted", string(codeInterrupted)
	case s.TimedOut:
		done.Error, done.Code = fmt.Sprintf("stopped after %s", c.Timeout), string(codeTimeout)
	case s.Signal != "":
		done.Error = "ended by " + s.Signal
	case s.ExitCode != 0:
		done.Error = fmt.Sprintf("exit status %d", s.ExitCode)
	}
	return done
}

// complete reports the end of a command. See announce for last.
func (a *Agent) complete(c *command, done wire.AgentCompleted, st *stream) (last func()) {
	a.noteCompleted(done, c.Tree)
	name, payload := completion(c, done)
	e := a.event(c.key(), c.Tree, name, payload)
	e.final, e.once = true, c.Legacy
	a.attach(e, st)
	return a.announce(c.key(), e)
}

// attach makes the command's output go out before its completion.
func (a *Agent) attach(e *event, st *stream) {
	if st == nil {
		return
	}
	st.end()
	e.before = st.flush
	e.gone = func() { a.dropStream(st) }
}

// completion is the event of a finished command, in the words of who asked.
func completion(c *command, done wire.AgentCompleted) (string, any) {
	if c.Legacy {
		return "deployment_command_completed", deployment(c, done)
	}
	return "command_completed", done
}

func deployment(c *command, done wire.AgentCompleted) wire.DeploymentCompleted {
	d := wire.DeploymentCompleted{
		AgentCompleted: done, Error: done.Error, Group: c.Group,
		IsDestructive: done.Changes.Modified+done.Changes.Deleted > 0,
		BackupCreated: done.SnapshotID != "", BackupID: done.SnapshotID,
	}
	if !c.Group {
		d.Output = "" // it was streamed, and they would append it
	}
	if c.Execution != nil {
		d.ExecutionID = c.Execution
	}
	return d
}

func (a *Agent) newStream(c *command) *stream {
	s := &stream{
		link: a.link, agentID: a.id, id: c.ID, batch: c.batch, command: c.Text, legacy: c.Legacy, mute: c.Group,
		patience: a.o.Patience, chunkBytes: chunkBytes, wake: make(chan struct{}), spool: newSpool(a.dir, a.o.SpoolBytes),
	}
	if c.batch != "" {
		s.index = &c.index
	}
	s.ctx, s.stop = context.WithCancel(a.ctx)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.streams[s] = struct{}{}
	return s
}

func (a *Agent) dropStream(s *stream) {
	a.mu.Lock()
	delete(a.streams, s)
	a.mu.Unlock()
	s.close()
}

// oneLine keeps a log to one line, and secrets that stand far into a script out
// of it.
func oneLine(s string) string {
	const most = 200
	first, _, more := strings.Cut(s, "\n")
	if len(first) > most {
		first, more = strings.ToValidUTF8(first[:most], ""), true
	}
	if more {
		return first + " …"
	}
	return first
}
