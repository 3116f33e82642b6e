package main

import (
	"encoding/json"
	"io"
	"sync"

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
