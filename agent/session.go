package agent

import (
	"context"
	"io"
	"time"

	"deployx/session"
	"deployx/snapshot"
)

// Session is what the agent asks of one tree. cmd makes it of a session.Session;
// tests make their own.
//
// Run, Rollback and Redo are called one at a time, the rest at any time.
type Session interface {
	Tree() snapshot.Tree
	Run(ctx context.Context, c session.Command) (session.Result, error)
	Rollback(ctx context.Context, t session.Target, o session.RollbackOptions) (session.Undo, error)
	Redo(ctx context.Context, n int, o session.RollbackOptions) (session.Undo, error)
	// Record is the history as it is on disk now, for reading.
	Record() (*snapshot.Record, error)
	// Changes lists what a snapshot's command changed.
	Changes(ctx context.Context, id snapshot.ID, visit func(snapshot.Change) error) error
	// Patch writes that as a unified diff.
	Patch(ctx context.Context, id snapshot.ID, w io.Writer) error
	// Size is what the layer of a snapshot takes, in bytes.
	Size(ctx context.Context, e snapshot.Snapshot) (int64, error)
	Close() error
}

// Retainer is a Session that can let old snapshots go: those of commands that
// ended more than olderThan ago. It may be called while a command runs, and
// says how many went. A session that is none keeps everything, and requests to
// clean up are answered unsupported.
type Retainer interface {
	Expire(ctx context.Context, olderThan time.Duration) (n int, err error)
}

// Forgetter is a Session that can let one snapshot go, if no other has to go
// with it or older says that those may. n is how many went, 0 if it had gone.
// It may be called while a command runs. A session that is none answers
// cleanup_snapshot with unsupported.
type Forgetter interface {
	Forget(ctx context.Context, id snapshot.ID, older bool) (n int, err error)
}

// Cleaner does what Retainer.Expire does for a known tree that has no session here.
// It neither makes a tree nor changes what one shows, and does not wait for another
// deployx: then the error is CodeTreeBusy.
type Cleaner func(ctx context.Context, t snapshot.Tree, olderThan time.Duration) (n int, err error)

// Opener opens the session of a directory, and makes it a tree if it is none.
type Opener func(ctx context.Context, path string) (Session, error)
