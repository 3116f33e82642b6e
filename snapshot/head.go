package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"

	"deployx/internal/durable"
)

// Head names the top of the history. Replacing it by rename is the one moment
// at which a command, a rollback or a redo takes place.
type Head struct {
	Version int    `json:"version"`
	Seq     uint64 `json:"seq"` // moves so far

	// Snapshot is the newest entry that is applied; "" is base.
	Snapshot ID `json:"head,omitempty"`
	// Open is the layer that takes the tree's writes; "" when the tree is a
	// plain directory.
	Open LayerID `json:"open,omitempty"`
	// Context is the hash of the shell's context now.
	Context string `json:"context,omitempty"`
	// Floor is where history ends: older entries have expired, and what they did
	// is one layer.
	Floor *Floor `json:"floor,omitempty"`
	// Committing is the entry through which the layers are becoming part of
	// base: none of them can be rolled back any more. "" when no commit is under
	// way.
	Committing ID `json:"committing,omitempty"`
	// Committed is the newest entry that is part of base.
	Committed ID `json:"committed,omitempty"`
	// Retire says that all was to be committed while a process held the tree: once
	// none does, what is left is committed too and the tree unmounted. The next
	// command or rollback takes that back.
	Retire bool `json:"retire,omitempty"`
	// Replaced is the open layer that Open took the place of while nothing was
	// in it; what was written to it in the last moment is drift.
	Replaced LayerID `json:"replaced,omitempty"`
	// Redo are the tops that rollbacks left behind, oldest rollback first.
	Redo []Frame `json:"redo,omitempty"`
	// Stands says what Open stands on where that is not the layers of Snapshot:
	// see Standing.
	Stands *Standing `json:"stands,omitempty"`
	// Copied are layers that could not be sealed and were kept by a copy: an
	// entry that names one means its copy.
	Copied map[LayerID]LayerID `json:"copied,omitempty"`
	// Restoring says that a pinned tree has still to be brought to Snapshot.
	Restoring *Restoring `json:"restoring,omitempty"`
}

// Restoring is a rollback or redo in place that has been decided and may not be
// done yet.
type Restoring struct {
	From ID `json:"from,omitempty"` // the top that the tree showed; "" is base
}

// Standing is what a view stands on once a pinned layer has been sealed by
// copies (docs/design.md, "Sealing"): the tree then shows Layers and the open
// layer, while the entries have layers of their own.
type Standing struct {
	// Layers are below the open layer, oldest first.
	Layers []LayerID `json:"layers,omitempty"`
	// From is the layer of which the entries have copies only as far as it was
	// looked at last: the open one while it is pinned, or the newest of Layers in
	// the moment after. "" means that Layers show what the entries do.
	From LayerID `json:"from,omitempty"`
}

// Floor stands for everything up to and with the entry Snapshot.
type Floor struct {
	Snapshot ID      `json:"snapshot"`
	Layer    LayerID `json:"layer,omitempty"` // "" if nothing had changed
}

// Frame is a top that a rollback left: where redo goes.
type Frame struct {
	Snapshot ID     `json:"head"`
	Context  string `json:"context,omitempty"`
}

// readHead reads a HEAD that is in its place all the while: one that has been
// exchanged is written to again.
func (r *Record) readHead() (Head, error) {
	name := r.path("HEAD")
	for {
		h := Head{Version: Version}
		before, err := os.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		err = readJSON(name, &h)
		after, e := os.Lstat(name)
		if e == nil && os.SameFile(before, after) && before.ModTime().Equal(after.ModTime()) {
			return h, err
		}
	}
}

// setHead forgets the remembered stack when the floor has been raised.
func (r *Record) setHead(h Head) {
	old := r.at()
	r.headMu.Lock()
	r.head, r.top = h, Snapshot{}
	r.headMu.Unlock()
	if h.floor() != old.floor() || !maps.Equal(h.Copied, old.Copied) {
		r.mu.Lock()
		r.stack = stack{}
		r.mu.Unlock()
	}
}

// at is the head for reading.
func (r *Record) at() Head {
	r.headMu.Lock()
	defer r.headMu.Unlock()
	return r.head
}

func (h Head) floor() Floor {
	if h.Floor == nil {
		return Floor{}
	}
	return *h.Floor
}

// bottom is the newest entry that cannot be rolled back any more.
func (h Head) bottom() ID { return max(h.Committing, h.floor().Snapshot) }

// Head is where the tree stands, as read or moved last.
func (r *Record) Head() Head {
	h := r.at()
	h.Redo = append([]Frame(nil), h.Redo...)
	h.Copied = maps.Clone(h.Copied)
	if h.Stands != nil {
		h.Stands = &Standing{Layers: slices.Clone(h.Stands.Layers), From: h.Stands.From}
	}
	return h
}

// headSize is what HEAD is padded to a multiple of, so that it seldom changes its
// length.
const headSize = 512

func (r *Record) stageHead(h Head) error {
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	pad := headSize - len(b)%headSize
	return durable.StageSpare(r.path("HEAD"), append(b, bytes.Repeat([]byte{'\n'}, pad)...))
}
