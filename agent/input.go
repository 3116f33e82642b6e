package agent

import (
	"io"
	"strings"
	"sync"

	"deployx/snapshot"
)

// maxInput bounds what was sent to a command and not read by it.
const maxInput = 1 << 20

// input is the standard input of a running command, fed by command_input.
type input struct {
	mu     sync.Mutex
	filled *sync.Cond
	buf    []byte
	ended  bool
}

func newInput() *input {
	in := &input{}
	in.filled = sync.NewCond(&in.mu)
	return in
}

// Read waits for input.
func (in *input) Read(p []byte) (int, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for len(in.buf) == 0 && !in.ended {
		in.filled.Wait()
	}
	if len(in.buf) == 0 {
		return 0, io.EOF
	}
	n := copy(p, in.buf)
	in.buf = in.buf[n:]
	return n, nil
}

// add never waits.
func (in *input) add(s string) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.ended {
		return fail(snapshot.CodeNotFound, "the command's input has ended", "")
	}
	if len(in.buf)+len(s) > maxInput {
		return fail(codeBusyQueue, "the command does not read its input", "send less, or later")
	}
	in.buf = append(in.buf, s...)
	in.filled.Broadcast()
	return nil
}

func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.ended = true
	in.filled.Broadcast()
}

// Keys that backends send as text. Without an interactive shell they mean an
// interrupt of what runs.
const (
	ctrlC, ctrlZ, ctrlD = "\x03", "\x1a", "\x04"
	ctrlL               = "\x0c"
)

// commandInput is text for the interactive shell (command), or for the standard
// input of a running command (command_id and data).
func (a *Agent) commandInput(r *request) (any, error) {
	id, data, eof := r.id("command_id"), r.text("data", maxInput), r.flag("eof", false)
	text := r.text("command", maxInput)
	if r.err != nil {
		return nil, r.err
	}
	if id != "" && (r.has("data") || eof) {
		return nil, a.feed(id, data, eof)
	}
	t := a.currentTerminal()
	key := strings.TrimRight(text, "\r\n")
	switch {
	case t == nil && (key == ctrlC || key == ctrlZ || key == ctrlD):
		return a.interruptAny(id)
	case t == nil:
		return nil, fail(snapshot.CodeNotFound, "no interactive shell runs", "send start_shell_request first, or command_id and data for a running command")
	case key == ctrlC || key == ctrlZ || key == ctrlD:
		return nil, t.press(key)
	case key == "cls": // what backends send for Ctrl+L
		return nil, t.press(ctrlL)
	}
	return nil, t.press(text)
}

func (a *Agent) feed(id, data string, eof bool) error {
	for _, t := range a.trees.all() {
		in, running := t.inputOf(id)
		if !running {
			continue
		}
		if in == nil {
			return fail(snapshot.CodeUnsupported, "the command has no input", "ask for one with stdin: true or tty: true")
		}
		if data != "" {
			if err := in.add(data); err != nil {
				return err
			}
		}
		if eof {
			in.close()
		}
		return nil
	}
	return fail(snapshot.CodeNotFound, "no command of that id runs", "")
}

func (a *Agent) interruptSignal(r *request) (any, error) {
	id := r.id("command_id")
	if id == "" {
		id = r.id("batch_id")
	}
	if r.err != nil {
		return nil, r.err
	}
	if t := a.currentTerminal(); id == "" && t != nil {
		return nil, t.press(ctrlC)
	}
	return a.interruptAny(id)
}

// interruptAny stops a command or batch by its id, wherever it runs or waits;
// without an id what runs in the default tree, or else anywhere.
func (a *Agent) interruptAny(id string) (any, error) {
	list := a.trees.all()
	if t, err := a.trees.pick(""); err == nil && id == "" {
		list = append([]*tree{t}, list...)
	}
	for _, t := range list {
		if t.interrupt(id) {
			return map[string]any{"interrupted": true}, nil
		}
	}
	return nil, fail(snapshot.CodeNotFound, "nothing runs that could be interrupted", "")
}
