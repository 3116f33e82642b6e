package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"deployx/internal/wire"
	"deployx/snapshot"
)

// encode prints one JSON value on a line, with < > & as they are: this is no
// web page.
func (a *app) encode(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// untold is the error of something that was done.
type untold struct{ error }

// result is encode for what was done, which a full disk under stdout does not undo.
func (a *app) result(v any) error {
	if err := a.encode(v); err != nil {
		return untold{fmt.Errorf("it is done, but the result could not be written: %w", err)}
	}
	return nil
}

// tellEvent is result, or encode for a dry run, after which nothing is done.
func (a *app) tellEvent(v any, dry bool) error {
	if dry {
		return a.encode(v)
	}
	return a.result(v)
}

// wasDone holds for the error of something that was done all the same, and told.
func wasDone(err error) bool {
	var told untold
	var stale stillStale
	return errors.As(err, &told) || errors.As(err, &stale)
}

// failureEvent is the event of a command that prints one object with --json, also
// where it is refused: "" for a listing. Those that are not here have one of their own.
func failureEvent(command string) (event string, ok bool) {
	switch command {
	case "redo", "commit", "forget", "keep":
		return command + "_completed", true
	case "gc":
		return "cleanup_completed", true
	case "log", "show", "diff", "status":
		return "", true
	}
	return "", false
}

// tellFailure prints the object of a command that was refused or failed.
func (a *app) tellFailure(ran *cobra.Command, err error) {
	var usage usageError
	var told exitStatus
	var there encoded
	if err == nil || !a.json || ran == nil || errors.As(err, &usage) || wasDone(err) || errors.As(err, &told) || errors.As(err, &there) {
		return
	}
	event, ok := failureEvent(ran.Name())
	if !ok {
		return
	}
	f := wire.Failed{Event: event, Error: err.Error(), Code: string(codeOf(err))}
	var e *snapshot.Error
	if errors.As(err, &e) {
		f.Paths, f.Processes = e.Paths, e.Holders
	}
	a.encode(f) //nolint:errcheck // stderr has it
}

// encoded is an error that stdout has already.
type encoded struct{ error }

// codeOf is snapshot.CodeOf, for a wrong flag too.
func codeOf(err error) snapshot.Code {
	var usage usageError
	if errors.As(err, &usage) {
		return snapshot.CodeBadRequest
	}
	return snapshot.CodeOf(err)
}

// outlet is stdout, and remembers what it did not take. A reader that went away has
// seen enough.
type outlet struct {
	w io.Writer

	mu  sync.Mutex
	err error
}

func (o *outlet) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil && !errors.Is(err, unix.EPIPE) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.err = cmp.Or(o.err, err)
	}
	return n, err
}

func (o *outlet) lost() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// events prints the events of one command as JSON, one object a line.
type events struct {
	id, batch string
	index     *int

	mu   sync.Mutex
	out  *json.Encoder
	seq  int
	text map[string]*wire.Text
	on   bool
}

func (a *app) newEvents(id, batch string, index *int) *events {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	return &events{id: id, batch: batch, index: index, out: enc, text: map[string]*wire.Text{}, on: a.json}
}

func (e *events) print(v any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.out.Encode(v) //nolint:errcheck // a reader that went away does not stop the command
}

func (e *events) started(s snapshot.Snapshot) error {
	if e.on {
		e.print(wire.Started{
			Event: "command_started", CommandID: e.id, BatchID: e.batch, Index: e.index,
			Command: s.Command, SnapshotID: string(s.ID), CWD: s.Dir,
		})
	}
	return nil
}

// stream is a writer that makes command_output events.
func (e *events) stream(name string) io.Writer {
	e.text[name] = &wire.Text{}
	return eventWriter{e, name}
}

type eventWriter struct {
	e    *events
	name string
}

func (w eventWriter) Write(p []byte) (int, error) {
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	return len(p), w.e.output(w.name, w.e.text[w.name].Next(p))
}

// output prints one piece. The caller holds mu.
func (e *events) output(name string, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	o := wire.Output{
		Event: "command_output", CommandID: e.id, BatchID: e.batch, Index: e.index,
		Stream: name, Output: string(p), Seq: e.seq,
	}
	e.seq++
	return e.out.Encode(o)
}

// flush prints what was held back at the end of the streams.
func (e *events) flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, name := range []string{"stdout", "stderr", "tty"} {
		if t := e.text[name]; t != nil {
			e.output(name, t.Rest()) //nolint:errcheck // a reader that went away does not stop the command
		}
	}
}
