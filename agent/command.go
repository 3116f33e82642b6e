package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"deployx/internal/wire"
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
	answer, err := a.enqueue(r, t, c.key(), note, func(noted func() error) *job { return a.commandJob(c, noted) })
	if errors.Is(err, errNotNoted) {
		a.refuseCommand(r, c, err)
	}
	return answer, err
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
// whose id is known is answered with what is known of it. The job must not do
// anything that lasts before noted has returned without an error.
func (a *Agent) enqueue(r *request, t *tree, k key, note json.RawMessage, job func(noted func() error) *job) (any, error) {
	dup, onDisk, err := a.journal.see(k, note, false)
	if err != nil || dup != nil {
		t.release()
	}
	if err != nil {
		return nil, errors.Join(errNotNoted, err)
	}
	if dup != nil {
		return a.resend(k, dup)
	}
	noted := func() error {
		if err := onDisk(); err != nil {
			return errors.Join(errNotNoted, err)
		}
		return nil
	}
	a.wg.Go(func() { // at once, while the tree is made ready
		if noted() == nil { // the promise is given when it can be kept
			a.ack(r.source, acceptance(map[string]any{k.kind + "_id": k.id, "status": "accepted"}))
		}
	})
	t.put(job(noted))
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
