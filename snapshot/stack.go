package snapshot

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"deployx/internal/durable"
)

// A stack is the layers of one top, oldest first: what would otherwise be
// found by reading every entry below it. It is derived from the entries, which
// never change, so an old one is as true as a new one.
//
// On disk it is a line of JSON and then an id a line: a new process reads it
// before its first command, and ten thousand ids as JSON took it 7 ms.
type stack struct {
	Version int       `json:"version"`
	Floor   Floor     `json:"floor"`
	Top     ID        `json:"top"`
	Count   int       `json:"count"` // of the lines that follow
	Layers  []LayerID `json:"-"`

	read int // entries that were read since it was on disk
}

// stackEvery is how many entries may come or go before the stack on disk is
// written anew: it bounds what a new process has to read, also where commands
// change nothing and so leave no layers.
const stackEvery = 32

// Layers are the layers of the entries from base up to and with the given
// one, oldest first, each once. It reads the entries between top and the top
// that was asked for before. The caller may append to what it gets, which
// copies it, but not write into it: it is shared.
func (r *Record) Layers(top ID) ([]LayerID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stack.Version == 0 {
		if err := r.loadStack(); err != nil {
			return nil, err
		}
	}
	layers, err := r.layersFrom(top)
	if err != nil {
		return nil, err
	}
	r.stack.Top, r.stack.Layers = top, layers
	return slices.Clip(layers), nil
}

func (r *Record) loadStack() error {
	r.stack = readStack(filepath.Join(r.dir, "stack"))
	if r.stack.Version != Version || r.stack.Floor != r.at().floor() {
		r.stack = stack{} // derived, and lost: the bottom is always right
	}
	if _, err := r.Snapshot(r.stack.Top); err != nil {
		r.stack = stack{Floor: r.at().floor()}
		r.stack.Top = r.stack.Floor.Snapshot
		r.stack.Layers = appendNew(nil, []LayerID{r.stack.Floor.Layer})
	}
	if copied := r.at().Copied; len(copied) > 0 {
		layers := r.stack.Layers
		r.stack.Layers = nil
		for _, l := range layers {
			if c, ok := copied[l]; ok {
				l = c
			}
			r.stack.Layers = appendNew(r.stack.Layers, []LayerID{l})
		}
	}
	r.stack.Version = Version
	return nil
}

// readStack reads a stack; the zero one if it is not there or not whole.
func readStack(name string) (s stack) {
	b, err := os.ReadFile(name)
	if err != nil {
		return stack{}
	}
	head, ids, _ := strings.Cut(string(b), "\n")
	if err := json.Unmarshal([]byte(head), &s); err != nil || s.Count < 0 || s.Count > len(ids) {
		return stack{}
	}
	s.Layers = make([]LayerID, 0, s.Count)
	for id := range strings.FieldsSeq(ids) {
		s.Layers = append(s.Layers, LayerID(id))
	}
	if len(s.Layers) != s.Count || s.Count > 0 && !strings.HasSuffix(ids, "\n") {
		return stack{}
	}
	return s
}

// SaveStack writes the stack if much has changed since it was written. It
// syncs nothing: what a power cut leaves is checked, and not needed. Like
// everything that writes it needs the tree's lock.
func (r *Record) SaveStack() error {
	r.mu.Lock()
	s := r.stack
	due := s.read >= stackEvery
	if due {
		r.stack.read = 0
	}
	r.mu.Unlock()
	if !due {
		return nil
	}
	s.Count = len(s.Layers)
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for _, id := range s.Layers {
		b = append(append(b, '\n'), id...)
	}
	return durable.Replace(filepath.Join(r.dir, "stack"), append(b, '\n'))
}

// layersFrom walks down from both tops until one meets the other, so that it
// costs what lies between them.
func (r *Record) layersFrom(top ID) ([]LayerID, error) {
	known := r.stack
	if known.Top == top {
		return known.Layers, nil
	}
	var above []LayerID // of the entries above known.Top, newest first
	below, floor := known.Layers, r.at().floor()
	for up, down := top, known.Top; ; {
		if up == known.Top {
			return appendNew(known.Layers, above), nil
		}
		if down == top && known.Top != "" {
			return r.withTop(below, top)
		}
		if up == floor.Snapshot {
			return appendNew(nil, append(above, floor.Layer)), nil // and nothing met
		}
		if up != "" {
			e, err := r.Snapshot(up)
			if err != nil {
				return nil, err
			}
			r.stack.read++
			above = append(above, e.Layer)
			if up = e.Parent; up == known.Top {
				continue
			}
		}
		if down != "" && down != floor.Snapshot {
			e, err := r.Snapshot(down)
			if err != nil {
				return nil, err
			}
			r.stack.read++
			if n := len(below); n > 0 && below[n-1] == e.Layer {
				below = slices.Clip(below[:n-1]) // others have what follows
			}
			down = e.Parent
		}
	}
}

// withTop puts back the layer that top shares with an entry above it.
func (r *Record) withTop(below []LayerID, top ID) ([]LayerID, error) {
	for e, err := range r.chain(top, r.at().floor().Snapshot) {
		if err != nil {
			return nil, err
		}
		if e.Layer != "" {
			return appendNew(below, []LayerID{e.Layer}), nil
		}
	}
	return appendNew(below, []LayerID{r.at().floor().Layer}), nil
}

// appendNew adds layers, given newest first, leaving out none and repeats. What
// was handed out of the old slice stays as it is: all of it ends where the slice
// does, or is a part of it that was clipped.
func appendNew(layers, newest []LayerID) []LayerID {
	out := layers
	for _, l := range slices.Backward(newest) {
		if l != "" && (len(out) == 0 || out[len(out)-1] != l) {
			out = append(out, l)
		}
	}
	return out
}
