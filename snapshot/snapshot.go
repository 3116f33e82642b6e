// Package snapshot keeps the record of what was done to a tree: which commands
// ran, which layer each made, and which of them make up the tree now.
//
// The record is the only truth. What it does not list is garbage; what the
// tree shows is made to agree with it by a Driver. This package imports no
// driver, runs no command and mounts nothing.
package snapshot

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/google/uuid"
)

// Version is the version of every file of the record. A record with another
// version is refused and not touched.
const Version = 1

// ID names a snapshot, the point just before a command. It is a version 7
// UUID (RFC 9562), so ids sort by time.
type ID string

// NewID makes an id that sorts after the ones made before it on this host.
func NewID() ID { return ID(uuid.Must(uuid.NewV7()).String()) }

// LayerID names a layer: what one command, or the outside world between two
// commands, did to the tree. Layer ids are never used twice.
type LayerID string

// NewLayerID makes a layer id.
func NewLayerID() LayerID { return LayerID(uuid.Must(uuid.NewV7()).String()) }

// Kind tells who made a layer.
type Kind string

// The kinds of snapshot.
const (
	KindCommand Kind = "command" // a command of ours
	KindDrift   Kind = "drift"   // services and people, between commands
)

// Mode tells how a snapshot was taken; "" is by a layer of its own.
type Mode string

// ModeSealed: the tree was pinned, so that what had changed was copied out of
// the layer that it shows.
const ModeSealed Mode = "sealed"

// SplitLinksMost bounds what an entry names.
const SplitLinksMost = 20

// Snapshot is one entry of the history: the point just before a command and
// what the command then did. It is written once, when the command has ended,
// and never changed.
type Snapshot struct {
	Version int  `json:"version"`
	ID      ID   `json:"snapshot_id"`
	Parent  ID   `json:"parent,omitempty"`
	Kind    Kind `json:"kind"`

	// Layer holds what it changed; empty when it changed nothing.
	Layer LayerID `json:"layer,omitempty"`
	// SharedWith is the first snapshot that uses Layer, when that is another
	// one: then both are one rollback point.
	SharedWith ID `json:"shared_with,omitempty"`
	// PinnedBy are the processes that kept Layer from being sealed.
	PinnedBy []Holder `json:"pinned_by,omitempty"`
	// Kept are the entries of others, oldest first, whose changes a rollback or a
	// redo carried over into Layer.
	Kept []ID `json:"kept,omitempty"`
	// Mode is ModeSealed when the tree was pinned and the snapshot is a copy of
	// what had changed.
	Mode Mode `json:"mode,omitempty"`
	// NoSnapshot: the command was run without a rollback point of its own.
	NoSnapshot bool `json:"no_snapshot,omitempty"`

	Command      string          `json:"command,omitempty"`
	CommandID    string          `json:"command_id,omitempty"`
	BatchID      string          `json:"batch_id,omitempty"`
	CommandIndex int             `json:"command_index,omitempty"`
	Metadata     json.RawMessage `json:"metadata,omitempty"`

	// Context and Dir are the shell's context (its hash) and working directory
	// before the command.
	Context string `json:"context,omitempty"`
	Dir     string `json:"working_directory,omitempty"`

	Started     time.Time     `json:"timestamp"`
	Duration    time.Duration `json:"duration_ns"`
	ExitCode    int           `json:"exit_code"`
	Signal      string        `json:"signal,omitempty"`
	TimedOut    bool          `json:"timed_out,omitempty"`
	Interrupted bool          `json:"interrupted,omitempty"`
	// Unfinished: deployx or the host died while it ran; Layer holds what it
	// had done by then.
	Unfinished bool `json:"unfinished,omitempty"`
	// Fast: it was reported before its layer was flushed (session.Options.Fast).
	Fast bool `json:"fast,omitempty"`

	Changes Counts `json:"changes"`
	// SplitLinks are paths of Changes that came apart from other names of the same
	// file (Change.SplitLink), in order: the first SplitLinksMost.
	SplitLinks []string `json:"split_links,omitempty"`

	SizeBytes int64 `json:"size_bytes"`
	Truncated bool  `json:"truncated,omitempty"` // the kept output is a tail
}

// View is what a tree shows: base, the sealed layers from oldest to newest,
// and an open layer on top that takes every write. Open names the view: it is
// never used with other layers, except that some may have been folded into one
// that stands for them (Folder).
type View struct {
	Layers []LayerID
	Open   LayerID
}

// Holder is a process that keeps a tree from being swapped or sealed.
type Holder struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`           // comm, see proc_pid_comm(5)
	How  string `json:"how"`            // "cwd", "root", "fd 3 (write)", …
	Path string `json:"path,omitempty"` // what it holds, as the kernel names it
}

// Who is the process in words, or what holds the tree without one (a mount, the
// kernel).
func (h Holder) Who() string {
	name := h.Name
	if q := strconv.Quote(name); q != `"`+name+`"` { // a process names itself
		name = q
	}
	if h.PID == 0 {
		return name
	}
	return fmt.Sprintf("%s (pid %d)", name, h.PID)
}
