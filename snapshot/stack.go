package snapshot

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"

	"deployx/internal/durable"
)

// A stack is the layers of one top, oldest first: what would otherwise be
// found by reading every entry below it. It is derived from the entries, which
// never change, so an old one is as true as a new one.
type stack struct {
	Version int       `json:"version"`
	Floor   Floor     `json:"floor"`
	Top     ID        `json:"top"`
	Layers  []LayerID `json:"layers"`

	saved int // how many layers are on disk
}

// stackEvery is how many layers may come or go before the stack on disk is
// written anew: it bounds what a new process has to read.
const stackEvery = 64

// Layers are the layers of the entries from base up to and with the given
// one, oldest first, each once. It reads the entries between top and the top
// that was asked for before.
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
	return slices.Clone(layers), nil
}

func (r *Record) loadStack() error {
	err := readJSON(filepath.Join(r.dir, "stack"), &r.stack)
	if err != nil && !errors.Is(err, fs.ErrNotExist) || r.stack.Version != Version || r.stack.Floor != r.at().floor() {
		r.stack = stack{} // derived, and lost: the bottom is always right
	}
	if _, err := r.Snapshot(r.stack.Top); err != nil {
		r.stack = stack{Floor: r.at().floor()}
		r.stack.Top = r.stack.Floor.Snapshot
		r.stack.Layers = appendNew(nil, []LayerID{r.stack.Floor.Layer})
	}
	r.stack.Version, r.stack.saved = Version, len(r.stack.Layers)
	return nil
}

// SaveStack writes the stack if much has changed since it was written. No
// sync: what a power cut leaves of it is checked, and not needed.
func (r *Record) SaveStack() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n := len(r.stack.Layers) - r.stack.saved; n < stackEvery && n > -stackEvery {
		return nil
	}
	b, err := json.Marshal(r.stack)
	if err != nil {
		return err
	}
	if err := durable.Write(filepath.Join(r.dir, "stack"), b); err != nil {
		return err
	}
	r.stack.saved = len(r.stack.Layers)
	return nil
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
			above = append(above, e.Layer)
			up = e.Parent
		}
		if down != "" && down != floor.Snapshot {
			e, err := r.Snapshot(down)
			if err != nil {
				return nil, err
			}
			if n := len(below); n > 0 && below[n-1] == e.Layer {
				below = below[:n-1]
			}
			down = e.Parent
		}
	}
}

// withTop puts back the layer that top shares with an entry above it.
func (r *Record) withTop(below []LayerID, top ID) ([]LayerID, error) {
	for e, err := range r.Chain(top) {
		if err != nil {
			return nil, err
		}
		if e.Layer != "" {
			return appendNew(below, []LayerID{e.Layer}), nil
		}
	}
	return appendNew(below, []LayerID{r.at().floor().Layer}), nil
}

// appendNew adds layers, given newest first, leaving out none and repeats.
func appendNew(layers, newest []LayerID) []LayerID {
	out := slices.Clone(layers)
	for _, l := range slices.Backward(newest) {
		if l != "" && (len(out) == 0 || out[len(out)-1] != l) {
			out = append(out, l)
		}
	}
	return out
}
