package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

// command is a request to run one command. It is noted in the journal, but for
// Env, which may hold secrets.
type command struct {
	ID        string          `json:"command_id"`
	Text      string          `json:"command"`
	Tree      string          `json:"tree"`
	Dir       string          `json:"cwd,omitempty"`
	Env       []string        `json:"-"`
	Timeout   time.Duration   `json:"timeout,omitempty"`
	Bare      bool            `json:"no_snapshot,omitempty"`
	Metadata  json.RawMessage `json:"metadata,omitempty"`
	Shell     string          `json:"shell,omitempty"` // to run it in, if not the session's
	Warning   string          `json:"warning,omitempty"`
	Stdin     bool            `json:"stdin,omitempty"`
	TTY       bool            `json:"tty,omitempty"`
	Legacy    bool            `json:"legacy,omitempty"`
	Group     bool            `json:"group_execution,omitempty"`
	Execution json.RawMessage `json:"execution_id,omitempty"`

	batch string
	index int
}

func (c *command) key() key { return key{kindCommand, c.ID} }

// restorePrefix is how a legacy backend's restore button asks for a rollback.
const restorePrefix = "RESTORE_BACKUP:"

func (a *Agent) executeCommand(r *request) (any, error) {
	c := a.readCommand(r.fields)
	snap := r.flag("snapshot", true)
	c.Bare = !r.flag("create_snapshot", snap)
	return a.accept(r, c)
}

func (a *Agent) executeDeployment(r *request) (any, error) {
	c := a.readCommand(r.fields)
	c.Legacy, c.Group = true, r.flag("group_execution", false)
	if r.has("execution_id") {
		c.Execution = r.raw["execution_id"]
	}
	return a.accept(r, c)
}

func (a *Agent) readCommand(f *fields) *command {
	c := &command{
		ID: f.id("command_id"), Text: f.need("command", maxCommand), Tree: f.text("tree", 4096), Dir: f.text("cwd", 4096),
		Env: f.env("env"), Timeout: f.seconds("timeout"), Stdin: f.flag("stdin", false), TTY: f.flag("tty", false),
	}
	c.Shell, c.Warning = a.chooseShell(f)
	if f.has("metadata") {
		c.Metadata = f.raw["metadata"]
	}
	if c.ID == "" {
		c.ID = uuid.NewString()
	}
	return c
}

// ourShells are names that ask for a shell of this kind of host. Any other name
// ("cmd", "powershell", …) is what a backend writes whatever the host is, and
// means the default.
var ourShells = []string{"bash", "sh", "dash", "busybox"}

// chooseShell reads the field shell: the shell to run in if it is not the
// session's own, and a warning for the result.
func (a *Agent) chooseShell(f *fields) (name, warning string) {
	name = f.text("shell", 100)
	switch {
	case name == "" || name == a.o.Shell:
		return "", ""
	case !slices.Contains(ourShells, name):
		return "", fmt.Sprintf("the shell %q is not known here; %s was used", name, a.o.Shell)
	case !slices.Contains(a.o.Shells, name):
		if f.err == nil {
			err := &shell.NotFoundError{Name: name, Found: a.o.Shells}
			f.err = &snapshot.Error{Code: snapshot.CodeFailedToStart, Msg: err.Error()}
		}
		return "", ""
	}
	return name, ""
}

// accept notes a command and puts it in its tree's queue.
func (a *Agent) accept(r *request, c *command) (any, error) {
	t, err := a.place(r, &c.Tree)
	if err != nil {
		a.refuseCommand(r, c, err)
		return nil, err
	}
	note, err := json.Marshal(c)
	if err != nil {
		t.release()
		return nil, err
	}
	return a.enqueue(r, t, c.key(), note, func() *job { return a.commandJob(c) })
}

// place finds the request's tree and reserves a place in its queue.
func (a *Agent) place(r *request, path *string) (*tree, error) {
	if r.err != nil {
		return nil, r.err
	}
	t, err := a.trees.pick(*path)
	if err != nil {
		return nil, err
	}
	*path = t.path
	return t, t.reserve()
}

// enqueue notes a request in the journal and puts its job in line. A request
// whose id is known is answered with what is known of it.
func (a *Agent) enqueue(r *request, t *tree, k key, note json.RawMessage, make func() *job) (any, error) {
	dup, onDisk, err := a.journal.see(k, note, false)
	if err != nil || dup != nil {
		t.release()
	}
	if err != nil {
		return nil, fmt.Errorf("note the request: %w", err)
	}
	if dup != nil {
		return a.resend(k, dup)
	}
	j := make()
	do := j.do
	j.do = func(ctx context.Context, s Session) {
		if err := onDisk(); err != nil {
			j.drop(fmt.Errorf("note the request: %w", err))
			return
		}
		do(ctx, s)
	}
	if r.source.WantsAck() { // the promise is given when it can be kept
		a.wg.Go(func() {
			if err := onDisk(); err == nil {
				a.ack(r.source, acceptance(map[string]any{k.kind + "_id": k.id, "status": "accepted"}))
			}
		})
	}
	t.put(j)
	return nil, errLater
}

// resend sends the results about k that are there once more.
func (a *Agent) resend(k key, e *entry) (any, error) {
	status := "running"
	if e.done {
		status = "completed"
	}
	events, err := a.journal.revive(k)
	if err != nil {
		return nil, err
	}
	if e.done && len(e.events) == 0 {
		return nil, fail(snapshot.CodeExpired, fmt.Sprintf("the %s %q was done; its result is not kept any more", k.kind, k.id), "")
	}
	a.outbox.add(events...)
	return map[string]any{k.kind + "_id": k.id, "status": status, "duplicate": true}, nil
}

// refuseCommand reports a command that could not be accepted as failed, so that
// a backend that waits for its completion gets one. One that is known keeps its
// own.
func (a *Agent) refuseCommand(r *request, c *command, err error) {
	if !r.has("command_id") || a.journal.knows(c.key()) {
		return
	}
	name, payload := completion(c, notRun(c, err))
	a.tell(name, payload)
}

// notRun is the result of a command that was never started.
func notRun(c *command, err error) wire.AgentCompleted {
	done := failed(c, err)
	done.NotRun = true
	return done
}

func failed(c *command, err error) wire.AgentCompleted {
	return wire.AgentCompleted{
		Completed: wire.Completed{
			CommandID: c.ID, BatchID: c.batch, Command: c.Text, ExitCode: -1, CWD: c.Dir, Error: err.Error(),
			Interrupt: codeOf(err) == codeInterrupted,
		},
		Code: string(codeOf(err)), Warning: c.Warning,
	}
}

func (a *Agent) commandJob(c *command) *job {
	j := &job{id: c.ID}
	if c.Stdin || c.TTY {
		j.input = newInput()
	}
	j.drop = func(err error) { a.complete(c, notRun(c, err), nil) }
	j.do = func(ctx context.Context, s Session) {
		if id, ok := c.restores(); ok {
			a.restore(ctx, s, c, id)
			return
		}
		a.runCommand(ctx, s, c, j.input)
	}
	return j
}

// runCommand runs a command and reports it.
func (a *Agent) runCommand(ctx context.Context, s Session, c *command, in *input) {
	st := a.newStream(c)
	reported := false
	run := a.sessionCommand(s, c, st, in)
	run.Done = func(r session.Result) {
		reported = true
		a.complete(c, a.completed(c, r, st), st)
	}
	_, err := s.Run(ctx, run)
	if in != nil {
		in.close()
	}
	if err != nil && !reported {
		a.complete(c, a.notDone(ctx, c, err), st)
	} else if err != nil {
		a.log.WithError(err).WithField("command_id", c.ID).Error("The command was recorded, but the tree could not be made ready for the next")
	}
}

// notDone is the result of a command that the session could not run or record.
func (a *Agent) notDone(ctx context.Context, c *command, err error) wire.AgentCompleted {
	if ctx.Err() != nil && codeOf(err) != codeInterrupted {
		err = errors.Join(errInterrupted, err)
	}
	return failed(c, err)
}

// sessionCommand is c as the session takes it.
func (a *Agent) sessionCommand(s Session, c *command, st *stream, in *input) session.Command {
	run := session.Command{
		Text: c.Text, ID: c.ID, BatchID: c.batch, CommandIndex: c.index, Metadata: c.Metadata, NoSnapshot: c.Bare,
		Env: append(slices.Clone(a.o.Env), c.Env...), Timeout: c.Timeout, Stdout: st.writer("stdout"), Stderr: st.writer("stderr"),
	}
	if c.Dir != "" {
		run.Dir = c.Dir
		if !filepath.IsAbs(c.Dir) {
			run.Dir = filepath.Join(s.Tree().Path, c.Dir)
		}
	}
	if c.Shell != "" {
		run.Text = c.Shell + " -c " + quote(c.Text)
	}
	if in != nil {
		run.Stdin = in
	}
	if c.TTY {
		run.TTY = &shell.TTY{In: in, Out: st.writer("tty")}
	}
	run.Started = func(p snapshot.Snapshot) { a.started(c, p) }
	return run
}

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
	e := wire.Started{CommandID: c.ID, BatchID: c.batch, Command: c.Text, SnapshotID: string(id), CWD: p.Dir}
	if c.batch != "" {
		e.Index = &c.index
	}
	a.tell("command_started", e)
}

// completed is the result of a command that ran.
func (a *Agent) completed(c *command, r session.Result, st *stream) wire.AgentCompleted {
	done := wire.AgentCompleted{Completed: wire.Complete(r), Warning: c.Warning}
	done.Command = c.Text // not as another shell got it
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

// complete reports the end of a command.
func (a *Agent) complete(c *command, done wire.AgentCompleted, st *stream) {
	a.noteCompleted(done, c.Tree)
	name, payload := completion(c, done)
	e := a.event(c.key(), c.Tree, name, payload)
	e.final, e.once = true, c.Legacy
	a.attach(e, st)
	a.publish(c.key(), e)
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

// quote makes one word of s for any shell (POSIX XCU 2.2.2).
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

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
