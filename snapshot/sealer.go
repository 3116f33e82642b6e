package snapshot

import "context"

// A Sealer is a driver that can keep what a pinned layer holds without
// sealing it: by copies, whose cost follows what has changed.
type Sealer interface {
	// Capture makes the sealed layer into: what v shows and layers (oldest first) do
	// not, so that layers and into show what v does. v.Open may be written to
	// meanwhile: each file is as it was at some moment of the call. It need not
	// be shown any more.
	//
	// None is made if nothing differs. An into of "" makes none in any case. On error
	// there is none either. Sync makes it last.
	Capture(ctx context.Context, v View, layers []LayerID, into LayerID, o CaptureOptions) (Captured, error)
}

// Captured is what a capture found.
type Captured struct {
	Differs bool
	// Counts is what Driver.Changes would count in the layer that was made, where the
	// capture knows: not where directories came, went, moved or were changed.
	Counts *Counts
}

// CaptureOptions refine a capture.
type CaptureOptions struct {
	// Only, if not nil, says which changed paths are to be taken; what it leaves
	// out differs still at the next capture. The directories on the way come
	// along.
	Only func(path string) bool
}

// A Restorer is a driver that can change what a pinned tree shows without a
// swap.
//
// Restore makes the tree that shows v agree with the layers to wherever these
// differ from the layers from. Files are replaced by rename, so that who opens one
// gets the old or the new; entries in which from and to agree are not touched, and
// what others made meanwhile in a directory that is to go stays, with the
// directory. Killed anywhere and called again with the same arguments it finishes
// the job. After an error a call with from and to exchanged takes it back. Both
// are told by again.
//
// A path that others have written to since the state from, and that is to be changed,
// is an error (CodeDriftConflict). Again, it is left as it is and named: the next
// capture finds it.
//
// A process that has a file open keeps the old one.
type Restorer interface {
	Restore(ctx context.Context, v View, from, to []LayerID, again bool) (left []string, err error)
}

// A Stander is a driver that can tell what the shown view stands on.
type Stander interface {
	// StandsOn lists the layers below a shown open one, oldest first.
	StandsOn(open LayerID) ([]LayerID, error)
}

// A Watcher is a driver that can tell who changes a shown tree.
type Watcher interface {
	// Watch begins to collect who changes the tree that shows v; done ends it.
	Watch(v View) (done func() (Writers, error), err error)
}

// Writers are those who changed a path meanwhile: the timer slacks of their
// processes (prctl(2), PR_SET_TIMERSLACK), by which a shell's commands are told
// apart. Of a process that ended before it could be looked at it is what that one had
// which made it; where both have ended, and the one had been there before the watch
// began, it is that one's number, negative; and 0 where that is not known. A path
// below one that was made, moved or removed belongs to whoever did that; who changed
// but the attributes of a directory is told for "DIR/.".
type Writers map[string][]int64
