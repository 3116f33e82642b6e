package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

// batch is a request to run commands one after another in the same shell. It
// is noted in the journal as it is.
type batch struct {
	ID       string          `json:"batch_id"`
	Commands []string        `json:"commands"`
	Tree     string          `json:"tree"`
	Dir      string          `json:"cwd,omitempty"`
	Env      []string        `json:"-"`
	Bare     bool            `json:"no_snapshots,omitempty"`
	GoOn     bool            `json:"go_on,omitempty"` // after a failure
	Undo     bool            `json:"rollback_on_failure,omitempty"`
	Shell    string          `json:"shell,omitempty"`
	Timeout  time.Duration   `json:"timeout,omitempty"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
	Warning  string          `json:"warning,omitempty"`
}

func (b *batch) key() key { return key{kindBatch, b.ID} }

// command is the i-th of the batch. Its id is the batch's and its place.
func (b *batch) command(i int) *command {
	c := &command{
		ID: fmt.Sprintf("%s#%d", b.ID, i), Text: b.Commands[i], Tree: b.Tree, Env: b.Env, Timeout: b.Timeout, Bare: b.Bare,
		Metadata: b.Metadata, Shell: b.Shell, Warning: b.Warning, batch: b.ID, index: i,
	}
	if i == 0 {
		c.Dir = b.Dir
	}
	return c
}

func (a *Agent) executeBatch(r *request) (any, error) {
	b := &batch{
		ID: r.id("batch_id"), Commands: r.commands("commands"), Tree: r.text("tree", 4096), Dir: r.text("cwd", 4096),
		Env: r.env("env"), Timeout: r.seconds("timeout"),
		Bare: !r.flag("create_snapshots", true), GoOn: !r.flag("stop_on_failure", true), Undo: r.flag("rollback_on_failure", false),
	}
	b.Shell, b.Warning = a.chooseShell(r.fields)
	if r.has("metadata") {
		b.Metadata = r.raw["metadata"]
	}
	if b.ID == "" {
		b.ID = uuid.NewString()
	}
	t, err := a.place(r, &b.Tree)
	if err != nil {
		a.refuseBatch(r, b, err)
		return nil, err
	}
	note, err := json.Marshal(b)
	if err != nil {
		t.release()
		return nil, err
	}
	answer, err := a.enqueue(r, t, b.key(), note, func(noted func() error) *job { return a.batchJob(b, noted) })
	if errors.Is(err, errNotNoted) {
		a.refuseBatch(r, b, err)
	}
	return answer, err
}

// refuseBatch is refuseCommand for a batch.
func (a *Agent) refuseBatch(r *request, b *batch, err error) {
	if r.has("batch_id") && !a.journal.knows(b.key()) {
		a.tell("batch_execution_completed", a.newBatchRun(b).report(err))
	}
}

func (a *Agent) batchJob(b *batch, noted func() error) *job {
	j := &job{id: b.ID}
	r := a.newBatchRun(b)
	r.over = j.over
	j.drop = func(err error) { r.skipFrom(0); r.finish(err) }
	j.do = func(ctx context.Context, s Session) { r.run(ctx, s, noted) }
	return j
}

// batchRun is one batch on its way.
type batchRun struct {
	a      *Agent
	b      *batch
	done   wire.BatchCompleted
	output strings.Builder
	over   func() // called before the end is told
	ran    bool   // something was run that can be rolled back
}

func (a *Agent) newBatchRun(b *batch) *batchRun {
	return &batchRun{a: a, b: b, over: func() {}, done: wire.BatchCompleted{BatchID: b.ID, Total: len(b.Commands), Results: []wire.BatchResult{}}}
}

func (r *batchRun) run(ctx context.Context, s Session, noted func() error) {
	var broken error
	for i := range r.b.Commands {
		if ctx.Err() != nil {
			broken = errInterrupted
		}
		if broken != nil || r.done.Failed > 0 && !r.b.GoOn {
			r.skipFrom(i)
			break
		}
		broken = r.one(ctx, s, i, noted)
	}
	if (r.done.Failed > 0 || broken != nil) && r.b.Undo && r.ran {
		broken = r.undo(ctx, s, broken)
	}
	r.finish(broken)
}

// one runs a command. The error says that the batch cannot go on.
func (r *batchRun) one(ctx context.Context, s Session, i int, noted func() error) error {
	a, c := r.a, r.b.command(i)
	st := a.newStream(c)
	a.tell("batch_command_progress", wire.BatchProgress{AgentID: a.id, BatchID: r.b.ID, Index: i, Command: c.Text, Status: "running"})
	run, last := a.sessionCommand(s, c, st, nil, noted), func() {}
	reported := false
	run.Done = func(res session.Result) {
		reported, r.ran = true, true
		last = r.completed(c, a.completed(c, res, st), st)
	}
	_, err := s.Run(ctx, run)
	if !reported {
		last = r.completed(c, a.notDone(ctx, c, err), st)
	}
	last()
	if reported && err != nil {
		a.log.WithError(err).WithField("batch_id", r.b.ID).Error("The command was recorded, but the tree could not be made ready for the next")
		return err
	}
	if errors.Is(err, errNotNoted) {
		return err
	}
	if ctx.Err() != nil {
		return errInterrupted
	}
	return nil
}

// completed reports one command of the batch. See announce for last.
func (r *batchRun) completed(c *command, done wire.AgentCompleted, st *stream) (last func()) {
	done.Index = &c.index
	r.add(done)
	r.a.noteCompleted(done, c.Tree)
	e := r.a.event(r.b.key(), r.b.Tree, "batch_command_completed", done)
	r.a.attach(e, st)
	return r.a.announce(r.b.key(), e)
}

// batchOutput bounds the outputs in batch_execution_completed, which must fit
// into one message: each command's own completion has more of it.
const batchOutput = 32 << 10

func (r *batchRun) add(done wire.AgentCompleted) {
	room := max(0, batchOutput-r.output.Len())
	out := tail(done.Output, room)
	r.output.WriteString(out)
	res := wire.BatchResult{
		Command: head(done.Command, 4096), Index: *done.Index, Success: done.Success, Output: out,
		Seconds: float64(done.DurationMS) / 1000, Error: done.Error, ExitCode: done.ExitCode, SnapshotID: done.SnapshotID,
	}
	if done.Success {
		r.done.Successful++
	} else {
		r.done.Failed++
	}
	r.done.Results = append(r.done.Results, res)
}

// head is the start of s, at most n bytes.
func head(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}

// tail is the end of s, at most n bytes.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[len(s)-n:], "")
}

// skipFrom lists the commands that were not run: they count as neither.
func (r *batchRun) skipFrom(i int) {
	for ; i < len(r.b.Commands); i++ {
		r.done.Results = append(r.done.Results, wire.BatchResult{
			Command: head(r.b.Commands[i], 4096), Index: i, Error: wire.SkippedText, Skipped: true,
		})
	}
}

// undo rolls the batch back, even if the batch was interrupted.
func (r *batchRun) undo(ctx context.Context, s Session, broken error) error {
	u, err := r.a.rollBack(context.WithoutCancel(ctx), s, rollback{Batch: r.b.ID}, false)
	if err != nil {
		if broken == nil {
			broken = fmt.Errorf("roll the batch back: %w", err)
		}
		return broken
	}
	r.done.RolledBack = len(u.Dropped) > 0
	return broken
}

func (r *batchRun) finish(broken error) {
	r.over()
	done := r.report(broken)
	r.a.noteResult(auditLine{BatchID: r.b.ID, Tree: r.b.Tree, OK: done.Success, Message: done.Error})
	e := r.a.event(r.b.key(), r.b.Tree, "batch_execution_completed", done)
	e.final = true
	r.a.publish(r.b.key(), e)
}

// report fills in the sums.
func (r *batchRun) report(broken error) wire.AgentBatchCompleted {
	d := wire.AgentBatchCompleted{BatchCompleted: r.done, Warning: r.b.Warning}
	d.Success = d.Failed == 0 && broken == nil && d.Successful == d.Total
	d.Output = r.output.String()
	if broken != nil {
		d.Error, d.Code = broken.Error(), string(codeOf(broken))
	}
	for _, res := range d.Results {
		if d.Error == "" {
			d.Error = res.Error
		}
	}
	return d
}

// resume rebuilds a batch that was cut off when the agent ended: what is known
// of its commands, and the rest as skipped.
func (a *Agent) resume(b *batch, known []line, rec *snapshot.Record, s Session) {
	r := a.newBatchRun(b)
	for _, l := range known {
		var done wire.AgentCompleted
		if l.Name == "batch_command_completed" && json.Unmarshal(l.Payload, &done) == nil && done.Index != nil {
			r.add(done)
		}
	}
	next := r.done.Successful + r.done.Failed
	if next < len(b.Commands) {
		c := b.command(next)
		if done, started := a.whatBecame(c, rec, s); started {
			r.completed(c, done, nil)()
			next++
		}
	}
	r.skipFrom(next)
	err := errRestarted
	if next == len(b.Commands) && r.done.Failed == 0 {
		err = nil
	} else if next == 0 {
		err = errNotStarted
	}
	r.finish(err)
}
