package agent

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"deployx/internal/wire"
	"deployx/snapshot"
	"deployx/socketio"
)

// request is an event from the backend that asks for something.
type request struct {
	*fields
	event    string
	source   *socketio.Event
	signedID string // request_id, if signed
}

// handler carries out a request, or puts it in line. What it returns goes into
// the acknowledgement; errLater says that it sees to that itself.
type handler func(*request) (answer any, err error)

var errLater = errors.New("answered later")

// handlers are the events that we take: docs/protocol.md, "Backend to agent".
func (a *Agent) handlers() map[string]handler {
	return map[string]handler{
		"execute_command":            a.executeCommand,
		"execute_deployment_command": a.executeDeployment,
		"execute_batch_persistent":   a.executeBatch,
		"rollback_command":           a.rollbackCommand,
		"rollback_batch":             a.rollbackBatch,
		"redo":                       a.redo,
		"get_snapshot_info":          a.query(a.snapshotInfo),
		"get_batch_snapshots":        a.query(a.batchSnapshots),
		"list_snapshots":             a.query(a.listSnapshots),
		"get_diff":                   a.query(a.diff),
		"cleanup_snapshots":          a.query(a.cleanupSnapshots),
		"cleanup_snapshot":           a.query(a.cleanupSnapshot),
		"command_input":              a.commandInput,
		"interrupt_signal":           a.interruptSignal,
		"start_shell_request":        a.startShell,
		"stop_shell_request":         a.stopShell,
		"get_shells":                 a.getShells,
	}
}

// receive makes a Socket.IO handler. It never waits: an interrupt must get
// round whatever is before it.
func (a *Agent) receive(name string, h handler) socketio.Handler {
	return func(_ context.Context, e *socketio.Event) {
		r := &request{event: name, source: e}
		err := a.admit(r)
		a.noteRequest(r, err)
		var answer any
		if err == nil {
			answer, err = h(r)
		}
		if !errors.Is(err, errLater) {
			a.answer(r, answer, err)
		}
	}
}

// admit decodes a request and checks whether it may come in.
func (a *Agent) admit(r *request) (err error) {
	if r.fields, err = decode(r.source.Args); err != nil {
		return err
	}
	if a.signers != nil {
		if err := a.authenticate(r); err != nil {
			return err
		}
	}
	if a.stopping.Load() {
		return errStopping
	}
	return nil
}

func (a *Agent) authenticate(r *request) error {
	now := time.Now()
	id, err := a.signers.verify(a.id, r.event, r.fields, now)
	if err != nil {
		return err
	}
	fresh, wait, err := a.journal.nonce(id, now)
	if err != nil {
		return err
	}
	if !fresh {
		return unauthorized("request_id %q was used before: a replay", id)
	}
	r.signedID = id
	return wait()
}

// answer acknowledges a request, and tells of a failure by the event error.
func (a *Agent) answer(r *request, answer any, err error) {
	if err == nil {
		a.ack(r.source, acceptance(answer))
		return
	}
	a.ack(r.source, refusal(err))
	f := failure(err)
	f.Event = r.event
	quiet := &fields{raw: r.raw}
	f.CommandID, f.BatchID, f.SnapshotID = quiet.text("command_id", maxID), quiet.text("batch_id", maxID), quiet.text("snapshot_id", maxID)
	a.complain(f)
	a.log.WithField("event", r.event).WithError(err).Warn("Request refused")
}

// acceptance is {ok: true, …}.
func acceptance(answer any) json.RawMessage {
	b, err := json.Marshal(answer)
	if err != nil || len(b) < 2 || b[0] != '{' || len(b) == 2 {
		return json.RawMessage(`{"ok":true}`)
	}
	return append([]byte(`{"ok":true,`), b[1:]...)
}

// refusal is {ok: false, error: {code, message}}.
func refusal(err error) json.RawMessage {
	b, e := json.Marshal(map[string]any{"ok": false, "error": failure(err)})
	if e != nil {
		return json.RawMessage(`{"ok":false}`)
	}
	return b
}

// ack answers off the handlers' goroutine, for a full send buffer makes it
// wait. A backend that asks for more acks than it reads gets none.
func (a *Agent) ack(e *socketio.Event, payload json.RawMessage) {
	if e == nil || !e.WantsAck() {
		return
	}
	select {
	case a.acks <- func() { _ = e.Ack(a.ctx, payload) }: // a lost connection loses its acks
	default:
		a.log.Warn("Too many acknowledgements wait; one is left out")
	}
}

func (a *Agent) sendAcks() {
	for {
		select {
		case f := <-a.acks:
			f()
		case <-a.ctx.Done():
			return
		}
	}
}

// query makes a handler of one that reads, or takes its time: it runs on a
// goroutine of its own, round the queue, a few at a time. What it returns is
// sent as the event and in the acknowledgement.
func (a *Agent) query(f func(context.Context, *request) (event string, answer any, err error)) handler {
	return func(r *request) (any, error) {
		select {
		case a.queries <- struct{}{}:
		default:
			return nil, fail(codeBusyQueue, "too many requests are being answered", "send it again when some are done")
		}
		a.wg.Go(func() {
			defer func() { <-a.queries }()
			event, answer, err := f(a.ctx, r)
			if err != nil {
				a.answer(r, nil, err)
			} else {
				a.ack(r.source, acceptance(answer))
			}
			if answer != nil && event != "" {
				a.tell(event, answer)
			}
		})
		return nil, errLater
	}
}

// noteRequest writes a request to the audit log.
func (a *Agent) noteRequest(r *request, err error) {
	quiet := &fields{raw: map[string]json.RawMessage{}}
	if r.fields != nil {
		quiet.raw = r.raw
	}
	l := auditLine{
		What: "request", Event: r.event, Backend: a.where, Connection: a.backend.Load().(string), RequestID: r.signedID,
		CommandID: quiet.text("command_id", maxID), BatchID: quiet.text("batch_id", maxID), SnapshotID: quiet.text("snapshot_id", maxID),
		Tree: quiet.text("tree", 4096), Command: quiet.text("command", maxCommand), Commands: quiet.raw["commands"], OK: err == nil,
	}
	if err != nil {
		l.Code, l.Message = string(codeOf(err)), err.Error()
		l.Commands = nil // of whatever size and form
	}
	a.noteAudit(l)
}

// noteResult writes what became of a request to the audit log.
func (a *Agent) noteResult(l auditLine) {
	l.What = "result"
	a.noteAudit(l)
}

func (a *Agent) noteAudit(l auditLine) {
	if err := a.audit.write(l); err != nil {
		a.log.WithError(err).Error("Could not write the audit log")
	}
}

// noteCompleted writes the result of a command.
func (a *Agent) noteCompleted(c wire.AgentCompleted, tree string) {
	code := c.ExitCode
	a.noteResult(auditLine{
		CommandID: c.CommandID, BatchID: c.BatchID, SnapshotID: c.SnapshotID, Tree: tree, Command: c.Command,
		OK: c.Success, ExitCode: &code, Code: c.Code, Message: c.Error,
	})
}

// idOf reads an id from the wire that must name a snapshot.
func snapshotID(f *fields, name string) snapshot.ID { return snapshot.ID(f.id(name)) }
