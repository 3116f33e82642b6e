package wire

import (
	"deployx/session"
	"deployx/snapshot"
)

// Register is agent_register: who the agent is and what it looks after.
type Register struct {
	AgentID    string     `json:"agent_id"`
	MachineID  string     `json:"machine_id"`
	DeviceName string     `json:"device_name"`
	IPAddress  string     `json:"ip_address"`
	OS         string     `json:"os"`
	Shells     []string   `json:"shells"`
	SystemInfo SystemInfo `json:"system_info"`
	Version    string     `json:"version"`
	Driver     string     `json:"driver"` // of the default tree, "" while it has none
	Trees      []Tree     `json:"trees"`
	Running    []string   `json:"running"` // ids of commands and batches
}

// SystemInfo is what legacy backends show of a device. Sizes are bytes.
type SystemInfo struct {
	Hostname        string `json:"hostname"`
	OS              string `json:"os"`
	OSVersion       string `json:"os_version"`
	OSRelease       string `json:"os_release"`
	Architecture    string `json:"architecture"`
	Processor       string `json:"processor"`
	CPUCount        int    `json:"cpu_count"`
	MemoryTotal     uint64 `json:"memory_total"`
	MemoryAvailable uint64 `json:"memory_available"`
	DiskTotal       uint64 `json:"disk_total"`
	DiskFree        uint64 `json:"disk_free"`
	MachineID       string `json:"machine_id"`
	IPAddress       string `json:"ip_address"`
	MACAddress      string `json:"mac_address"`
}

// Tree is a tree in agent_register.
type Tree struct {
	Path      string      `json:"path"`
	Driver    string      `json:"driver,omitempty"`
	Head      snapshot.ID `json:"head"` // "" is base
	Snapshots int         `json:"snapshots"`
	Error     string      `json:"error,omitempty"` // why it cannot be used
}

// Failure is why a request was not done: the error of an acknowledgement, and
// with Event and the ids the event error.
type Failure struct {
	Code       string            `json:"code"`
	Message    string            `json:"message"`
	Processes  []snapshot.Holder `json:"processes,omitempty"`
	Paths      []string          `json:"paths,omitempty"`
	Event      string            `json:"event,omitempty"`
	CommandID  string            `json:"command_id,omitempty"`
	BatchID    string            `json:"batch_id,omitempty"`
	SnapshotID string            `json:"snapshot_id,omitempty"`
}

// AgentCompleted is command_completed, batch_command_completed and
// deployment_command_completed as the agent sends them, and a command that deployx
// could not run.
type AgentCompleted struct {
	Completed
	Code    string `json:"code,omitempty"`
	Warning string `json:"warning,omitempty"`
	NotRun  bool   `json:"not_run,omitempty"` // it was never started
}

// DeploymentCompleted is deployment_command_completed: a legacy backend's
// restore button works with is_destructive, backup_created and backup_id.
type DeploymentCompleted struct {
	AgentCompleted
	Error         string `json:"error"` // there even if empty
	IsDestructive bool   `json:"is_destructive"`
	BackupCreated bool   `json:"backup_created"`
	BackupID      string `json:"backup_id,omitempty"`
	DisplayCmd    string `json:"display_command,omitempty"`
	ExecutionID   any    `json:"execution_id,omitempty"`
	Group         bool   `json:"group_execution,omitempty"`
}

// DeploymentOutput is deployment_command_output.
type DeploymentOutput struct {
	AgentID   string `json:"agent_id"`
	CommandID string `json:"command_id"`
	Output    string `json:"output"`
}

// AgentOutput is command_output as the agent sends it.
type AgentOutput struct {
	AgentID string `json:"agent_id"`
	Output
}

// BatchProgress is batch_command_progress.
type BatchProgress struct {
	AgentID string `json:"agent_id"`
	BatchID string `json:"batch_id"`
	Index   int    `json:"command_index"`
	Command string `json:"command"`
	Output  string `json:"output"`
	Status  string `json:"status"` // "running"
}

// Outcome is one of the small legacy results: rollback_status,
// rollback_result, batch_rollback_status, batch_rollback_result,
// cleanup_result, shell_started, shell_stopped.
type Outcome struct {
	CommandID  string `json:"command_id,omitempty"`
	SnapshotID string `json:"snapshot_id,omitempty"`
	BatchID    string `json:"batch_id,omitempty"`
	Shell      string `json:"shell,omitempty"`
	Status     string `json:"status,omitempty"`
	Success    *bool  `json:"success,omitempty"`
	Message    string `json:"message"`
	Error      string `json:"error,omitempty"`
	Code       string `json:"code,omitempty"`
	Removed    *int   `json:"removed,omitempty"`
	Tree       string `json:"tree,omitempty"`
}

// AgentBatchCompleted is batch_execution_completed as the agent sends it.
type AgentBatchCompleted struct {
	BatchCompleted
	Code    string `json:"code,omitempty"`
	Warning string `json:"warning,omitempty"`
}

// AgentRolledBack is rollback_completed as the agent sends it, and with Event
// redo_completed.
type AgentRolledBack struct {
	RolledBack
	CommandID string            `json:"command_id,omitempty"`
	Processes []snapshot.Holder `json:"processes,omitempty"`
	Warning   string            `json:"warning,omitempty"`
}

// SnapshotList is snapshots_list_result.
type SnapshotList struct {
	Success   bool                `json:"success"`
	Snapshots []Metadata          `json:"snapshots"` // newest first
	Batches   map[string][]string `json:"batches"`   // snapshot ids, oldest first
	Tree      string              `json:"tree"`
	Truncated bool                `json:"truncated,omitempty"` // older ones were left out
	Error     string              `json:"error,omitempty"`
	Code      string              `json:"code,omitempty"`
}

// SnapshotInfo is snapshot_info_result and batch_snapshots_result.
type SnapshotInfo struct {
	SnapshotID string `json:"snapshot_id,omitempty"`
	BatchID    string `json:"batch_id,omitempty"`
	Success    bool   `json:"success"`
	Info       any    `json:"info"`
	Error      string `json:"error,omitempty"`
	Code       string `json:"code,omitempty"`
}

// Diff is diff_result.
type Diff struct {
	SnapshotID string            `json:"snapshot_id"`
	Success    bool              `json:"success"`
	Changes    []snapshot.Change `json:"changes"`
	Patch      string            `json:"patch,omitempty"`
	Truncated  bool              `json:"truncated,omitempty"`
	Error      string            `json:"error,omitempty"`
	Code       string            `json:"code,omitempty"`
}

// Redone is redo_completed.
type Redone struct {
	Event      string   `json:"event,omitempty"`
	Success    bool     `json:"success"`
	Redone     []string `json:"redone"`
	DryRun     bool     `json:"dry_run"`
	Verified   bool     `json:"verified"`
	DurationMS float64  `json:"duration_ms"`
	CWD        string   `json:"cwd,omitempty"`
	Kept       *Kept    `json:"kept,omitempty"`

	InPlace      bool                   `json:"in_place,omitempty"`
	PinnedBy     []snapshot.Holder      `json:"pinned_by,omitempty"`
	Stale        []session.Stale        `json:"stale,omitempty"`
	Restarted    []string               `json:"restarted,omitempty"`
	NotRestarted []session.NotRestarted `json:"not_restarted,omitempty"`

	Error string `json:"error,omitempty"`
	Code  string `json:"code,omitempty"`
}

// Redo makes the payload of a redo.
func Redo(u session.Undo, ok bool) Redone {
	r := Rollback(u)
	return Redone{
		Success: ok, Redone: r.RolledBack, DryRun: u.DryRun, Verified: u.Verified, DurationMS: r.DurationMS, CWD: u.Dir,
		InPlace: r.InPlace, PinnedBy: r.PinnedBy, Kept: r.Kept, Stale: r.Stale,
	}
}
