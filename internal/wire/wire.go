// Package wire has the payloads of the wire protocol (docs/protocol.md), which
// are also what the command prints with --json.
//
// It is not for transport, and decides nothing.
package wire

import (
	"slices"
	"time"

	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

// Started is command_started: the snapshot stands, the command runs.
type Started struct {
	Event      string `json:"event,omitempty"`
	CommandID  string `json:"command_id"`
	BatchID    string `json:"batch_id,omitempty"`
	Index      *int   `json:"command_index,omitempty"`
	Command    string `json:"command"`
	SnapshotID string `json:"snapshot_id"`
	CWD        string `json:"cwd"`
}

// Output is command_output. Seq counts a command's pieces from 0.
type Output struct {
	Event     string `json:"event,omitempty"`
	CommandID string `json:"command_id"`
	BatchID   string `json:"batch_id,omitempty"`
	Index     *int   `json:"command_index,omitempty"`
	Stream    string `json:"stream"`
	Output    string `json:"output"`
	Seq       int    `json:"seq"`
}

// Completed is command_completed, and with Index set batch_command_completed.
type Completed struct {
	Event      string            `json:"event,omitempty"`
	CommandID  string            `json:"command_id,omitempty"`
	BatchID    string            `json:"batch_id,omitempty"`
	Index      *int              `json:"command_index,omitempty"`
	Command    string            `json:"command"`
	Success    bool              `json:"success"`
	ExitCode   int               `json:"exit_code"`
	Signal     string            `json:"signal,omitempty"`
	TimedOut   bool              `json:"timed_out,omitempty"`
	Interrupt  bool              `json:"interrupted,omitempty"`
	SnapshotID string            `json:"snapshot_id,omitempty"`
	DurationMS int64             `json:"duration_ms"`
	CWD        string            `json:"cwd"`
	Changes    snapshot.Counts   `json:"changes"`
	SplitLinks []string          `json:"split_links,omitempty"`
	Output     string            `json:"output"`
	Truncated  bool              `json:"truncated"`
	PinnedBy   []snapshot.Holder `json:"pinned_by,omitempty"`
	SharedWith string            `json:"shared_with,omitempty"`
	Mode       snapshot.Mode     `json:"mode,omitempty"`
	Restarted  bool              `json:"shell_restarted,omitempty"`
	Survivors  []Process         `json:"survivors,omitempty"`
	Uncovered  []snapshot.Mount  `json:"uncovered,omitempty"`
	Error      string            `json:"error,omitempty"`
}

// Failed is what a command prints with --json when it is refused or fails, in place of
// its result.
type Failed struct {
	Event     string            `json:"event,omitempty"`
	Success   bool              `json:"success"` // false
	Error     string            `json:"error"`
	Code      string            `json:"code"`
	Paths     []string          `json:"paths,omitempty"`
	Processes []snapshot.Holder `json:"processes,omitempty"`
}

// Process is a process that a command left running.
type Process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

// Processes converts what the shell names.
func Processes(ps []shell.Process) []Process {
	var out []Process
	for _, p := range ps {
		out = append(out, Process{p.PID, p.Name})
	}
	return out
}

// Complete makes the payload of a finished command.
func Complete(r session.Result) Completed {
	s := r.Snapshot
	c := Completed{
		CommandID: s.CommandID, BatchID: s.BatchID, Command: s.Command,
		Success: s.ExitCode == 0, ExitCode: s.ExitCode, Signal: s.Signal, TimedOut: s.TimedOut, Interrupt: s.Interrupted,
		DurationMS: s.Duration.Milliseconds(), CWD: r.Dir, Changes: s.Changes, SplitLinks: s.SplitLinks,
		Output: string(r.Tail), Truncated: s.Truncated, PinnedBy: s.PinnedBy, SharedWith: string(s.SharedWith),
		Mode:      s.Mode,
		Restarted: r.Restarted, Survivors: Processes(r.Survivors), Uncovered: r.Uncovered,
	}
	if !s.NoSnapshot {
		c.SnapshotID = string(s.ID)
	}
	return c
}

// BatchResult is one element of batch_execution_completed.
type BatchResult struct {
	Command    string  `json:"command"`
	Index      int     `json:"index"`
	Success    bool    `json:"success"`
	Output     string  `json:"output"`
	Seconds    float64 `json:"execution_time"`
	Error      string  `json:"error"`
	ExitCode   int     `json:"exit_code"`
	SnapshotID string  `json:"snapshot_id,omitempty"`
	Skipped    bool    `json:"skipped,omitempty"`
}

// SkippedText is the error of a command that was not run because an earlier
// one of its batch failed.
const SkippedText = "Skipped due to previous failure"

// BatchCompleted is batch_execution_completed.
type BatchCompleted struct {
	Event      string        `json:"event,omitempty"`
	BatchID    string        `json:"batch_id"`
	Success    bool          `json:"success"`
	Total      int           `json:"total_commands"`
	Successful int           `json:"successful_commands"`
	Failed     int           `json:"failed_commands"`
	Results    []BatchResult `json:"execution_results"`
	Output     string        `json:"output"`
	Error      string        `json:"error"`
	RolledBack bool          `json:"rolled_back"`
}

// RolledBack is rollback_completed.
type RolledBack struct {
	Event      string   `json:"event,omitempty"`
	Success    bool     `json:"success"`
	SnapshotID string   `json:"snapshot_id,omitempty"`
	BatchID    string   `json:"batch_id,omitempty"`
	RolledBack []string `json:"rolled_back"`
	CWD        string   `json:"cwd,omitempty"`
	DurationMS float64  `json:"duration_ms"`
	Verified   bool     `json:"verified"`
	DryRun     bool     `json:"dry_run,omitempty"`
	Plain      bool     `json:"unmounted,omitempty"`
	Kept       *Kept    `json:"kept,omitempty"`

	InPlace      bool                   `json:"in_place,omitempty"`  // the tree was pinned, by PinnedBy
	PinnedBy     []snapshot.Holder      `json:"pinned_by,omitempty"` // they go on with what they have open
	Stale        []session.Stale        `json:"stale,omitempty"`     // at most keptPaths
	Restarted    []string               `json:"restarted,omitempty"` // units
	NotRestarted []session.NotRestarted `json:"not_restarted,omitempty"`
	Uncovered    []snapshot.Mount       `json:"uncovered,omitempty"` // mounted below the tree: as it was

	Error string   `json:"error,omitempty"`
	Code  string   `json:"code,omitempty"`
	Paths []string `json:"paths,omitempty"`
}

// Rollback makes the payload of a rollback that was done, or would be.
func Rollback(u session.Undo) RolledBack {
	r := RolledBack{
		Success: true, RolledBack: []string{}, CWD: u.Dir, Verified: u.Verified, DryRun: u.DryRun, Plain: u.Plain,
		DurationMS: float64(u.Duration) / float64(time.Millisecond), Kept: KeptIn(u),
		Stale:   u.Stale[:min(keptPaths, len(u.Stale))],
		InPlace: u.InPlace, PinnedBy: u.Holders, Uncovered: u.Uncovered,
	}
	for _, s := range u.Dropped {
		r.RolledBack = append(r.RolledBack, string(s.ID))
	}
	return r
}

// Kept is what others changed and an undo left in place.
type Kept struct {
	SnapshotID string   `json:"snapshot_id,omitempty"` // the entry that holds it now; none if what others did came to nothing
	Total      int      `json:"total"`
	Paths      []string `json:"paths"` // in order, at most keptPaths
}

// keptPaths bounds what an event names.
const keptPaths = 100

// KeptIn is nil if others had changed nothing.
func KeptIn(u session.Undo) *Kept {
	if len(u.Kept) == 0 {
		return nil
	}
	var paths []string
	for _, c := range u.Kept {
		paths = append(paths, c.Path)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	k := &Kept{Total: len(paths), Paths: paths[:min(keptPaths, len(paths))]}
	if u.KeptAs != nil {
		k.SnapshotID = string(u.KeptAs.ID)
	}
	return k
}

// Metadata is a snapshot as lists show it.
type Metadata struct {
	SnapshotID   string            `json:"snapshot_id"`
	Kind         snapshot.Kind     `json:"kind"`
	State        string            `json:"state"` // "applied" or "rolled_back"
	Command      string            `json:"command"`
	CommandID    string            `json:"command_id,omitempty"`
	Timestamp    time.Time         `json:"timestamp"`
	AgeSeconds   float64           `json:"age_seconds"`
	Dir          string            `json:"working_directory"`
	Tree         string            `json:"tree"`
	BatchID      string            `json:"batch_id,omitempty"`
	CommandIndex int               `json:"command_index"`
	ExitCode     int               `json:"exit_code"`
	Signal       string            `json:"signal,omitempty"`
	TimedOut     bool              `json:"timed_out,omitempty"`
	Interrupted  bool              `json:"interrupted,omitempty"`
	Unfinished   bool              `json:"unfinished,omitempty"`
	DurationMS   int64             `json:"duration_ms"`
	Changes      snapshot.Counts   `json:"changes"`
	SplitLinks   []string          `json:"split_links,omitempty"`
	Driver       string            `json:"driver"`
	SizeBytes    int64             `json:"size_bytes"` // of its layer, where that was looked at: not in lists
	SharedWith   string            `json:"shared_with,omitempty"`
	PinnedBy     []snapshot.Holder `json:"pinned_by,omitempty"`
	Mode         snapshot.Mode     `json:"mode,omitempty"`
	Kept         []snapshot.ID     `json:"kept,omitempty"`
	Metadata     any               `json:"metadata,omitempty"`
}

// Describe makes the list form of a snapshot. State is "applied", "rolled_back" or
// "running".
func Describe(s snapshot.Snapshot, t snapshot.Tree, state string, now time.Time) Metadata {
	m := Metadata{
		SnapshotID: string(s.ID), Kind: s.Kind, State: state, Command: s.Command, CommandID: s.CommandID,
		Timestamp: s.Started, AgeSeconds: now.Sub(s.Started).Seconds(), Dir: s.Dir, Tree: t.Path,
		BatchID: s.BatchID, CommandIndex: s.CommandIndex, ExitCode: s.ExitCode, Signal: s.Signal,
		TimedOut: s.TimedOut, Interrupted: s.Interrupted, Unfinished: s.Unfinished,
		DurationMS: s.Duration.Milliseconds(), Changes: s.Changes, SplitLinks: s.SplitLinks, Driver: t.Driver,
		SharedWith: string(s.SharedWith), PinnedBy: s.PinnedBy, Mode: s.Mode, Kept: s.Kept,
	}
	if len(s.Metadata) > 0 {
		m.Metadata = s.Metadata
	}
	return m
}
