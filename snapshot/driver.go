package snapshot

import (
	"context"
	"io"
)

// Driver makes one tree show what the record says, and keeps the layers.
//
// Vocabulary: a layer is open while it takes the tree's writes and sealed once
// another view has been shown above it. A sealed layer never changes. A driver
// serves one tree; its methods are called by one goroutine at a time, under the
// tree's lock.
//
// Every method is repeatable: killed anywhere and called again with the same
// arguments, it finishes the job. A method that returns an error has left the
// tree showing what it showed before.
type Driver interface {
	// Name is kept in the record: a stack is only ever opened with the driver
	// that made it.
	Name() string

	// Shown says which open layer the tree shows: "" when it is a plain
	// directory. It costs microseconds and is asked before every command.
	Shown(ctx context.Context) (LayerID, error)

	// Show makes the tree show exactly v, and collects what changes from then
	// on in v.Open, which it makes if it does not exist. Whoever looks at the
	// tree sees the old view or the new one, never base and never nothing, where
	// the driver can (doctor tells where it cannot).
	//
	// The old open layer, if it is among v.Layers, is sealed; else it and every
	// layer not in v stay on disk, unseen, until Discard. A process that holds
	// the shown tree in a way that would split it from the new view makes Show
	// fail with CodeTreeBusy and the holders' names. If that is found only when the
	// new view has been seen, what was written to it is in the old one afterwards.
	Show(ctx context.Context, v View) (Transition, error)

	// Hide makes the tree a plain directory again. It may be called only when
	// the record lists no layer. Busy as in Show; no error if it is hidden.
	Hide(ctx context.Context) error

	// Dirty says whether anything in the tree has changed since v was shown.
	// A driver that must look for changes records them in v.Open before it
	// answers, completely and durably or not at all.
	Dirty(ctx context.Context, v View) (bool, error)

	// Changes calls visit for every path that layers (oldest first) changed on
	// top of below, in byte order of Path. Net changes only: a file that one
	// layer adds and a later one removes is not named; nor is a directory of
	// which only the time or the inode flags changed. A file with the same bytes
	// and another time is ChangeMetadata. ChangeRenamed means that the subtree
	// moved: what stood at the new path before is told as deleted, what was
	// made anew at the old one as added. A layer that is not there is an error.
	Changes(ctx context.Context, below, layers []LayerID, visit func(Change) error) error

	// Open reads the regular file or symbolic link (its target) at path, below
	// the tree, as base and layers have it. It follows no link on the way;
	// anything but a file or a link is an error.
	Open(ctx context.Context, layers []LayerID, path string) (io.ReadCloser, error)

	// Holders names the processes that would make Show fail now.
	Holders(ctx context.Context) ([]Holder, error)

	// Sync returns when everything written to the tree so far, and to the
	// record's directory where that is the same filesystem, is on disk.
	Sync(ctx context.Context) error

	// Discard gives a layer up that no view uses any more. It returns at once;
	// the space is given back later. No error if it is not there. A layer that
	// the shown view stands on, though the record no longer lists it, is
	// CodeTreeBusy: it can go once another view is shown.
	Discard(ctx context.Context, id LayerID) error

	// Layers lists what is on disk, in no order.
	Layers(ctx context.Context) ([]LayerID, error)

	// Usage is the disk space that one layer takes.
	Usage(ctx context.Context, id LayerID) (Usage, error)

	// Depth is the number of layers that Show would stack for v, and limit the
	// most it can; 0 is no limit, since nothing is stacked.
	Depth(v View) (depth, limit int)

	// Close gives back what the driver holds in this process. The tree goes on
	// showing what it shows.
	Close() error
}

// A Preparer is a driver that can do part of a coming Show ahead of time, while
// a command runs. Prepare changes nothing that anybody sees; an error means
// that Show will have to do all of it. What was prepared and is not shown is
// given up by the next Prepare, Show of another view, or Close.
type Preparer interface {
	Prepare(ctx context.Context, v View) error
}

// A Renamer is a driver whose Changes tells ChangeRenamed. ChangesByPath tells the
// same without, and no SplitLink: each path is compared with what had it before, so
// that all that was in a renamed directory is gone from the one path and new at the
// other.
type Renamer interface {
	ChangesByPath(ctx context.Context, below, layers []LayerID, visit func(Change) error) error
}

// A Folder is a driver that can make one layer of many, for retention. Fold
// makes a new sealed layer that stands for layers, the bottom of a stack, oldest
// first; they stay until Discard. It changes nothing that anybody sees.
type Folder interface {
	Fold(ctx context.Context, layers []LayerID) (LayerID, error)
}

// A Committer is a driver that can make layers part of base.
type Committer interface {
	// Settle makes, if need be, one sealed layer that stands for layers, the
	// bottom of a stack, oldest first, and reads nothing of base but what stands
	// at its own path: base can then change beneath it. It returns "" if they are
	// such already. It changes nothing that anybody sees, nor base.
	Settle(ctx context.Context, layers []LayerID) (LayerID, error)

	// Commit makes base what layers, the bottom of the shown view, have made of
	// it, durably; the tree shows the same before, meanwhile and afterwards.
	// They must be settled. CodeTreeBusy means that nothing was done, and that the
	// view must be shown anew first, with another open layer: a layer that Settle
	// made must be in it, for one. Killed or failed anywhere and called again with
	// the same layers, it finishes; until it has returned nil no view may be shown
	// without them, and from then on none with them.
	Commit(ctx context.Context, layers []LayerID, progress func(Progress)) error
}

// Progress tells how far long work has come. Total is an estimate, 0 while
// unknown.
type Progress struct {
	Phase string `json:"phase"`
	Files int64  `json:"files"`
	Total int64  `json:"total_files"`
}

// A Maintainer is a driver that keeps itself quick by work that can be done at
// any time. Maintain may run beside the other methods, on a view whose layers
// are sealed; it changes nothing that anybody sees, and ctx may end it.
//
// Where layers come faster than that, somebody has to wait, for no mount has more
// than so many layers. Room waits, if need be, until Show of one layer more above
// v's need not: a command waits before it begins then, not before it is reported.
// OnWait, called before anything else, sets who is told when Show or Room take
// more than a moment, and what Show could not keep in view (docs/design.md, "Going
// back"), from any goroutine.
type Maintainer interface {
	Maintain(ctx context.Context, v View) error
	Room(ctx context.Context, v View) error
	OnWait(tell func(string))
}

// A Deriver is a driver that keeps more than its layers: what Maintain made.
// Derived is the space that this takes, without what it shares with layers. What
// Usage says of a sealed layer of such a driver does not change.
type Deriver interface {
	Derived(ctx context.Context) (Usage, error)
}

// Elsewhere is implemented by a driver that mounts. It names those who hold the
// shown tree by another mount of it, in this mount namespace or another, so that
// Show would fail. Holders, which is asked before and after every command, leaves
// these out, for it costs a look at every process.
type Elsewhere interface {
	Elsewhere(ctx context.Context) ([]Holder, error)
}

// A Rememberer is a driver for which Holders is dear. Held names some if there
// are any: those that were found lately and still hold the tree will do. It says
// nobody only if Holders does.
type Rememberer interface {
	Held(ctx context.Context) ([]Holder, error)
}

// A Viewer is a driver that shows each view by a mount of its own. Views are the
// mounts that have shown the tree since the host was booted, as far as that is
// known, by their unique ids (STATX_MNT_ID_UNIQUE).
type Viewer interface {
	Views() map[uint64]bool
}

// A Noter is a driver whose Dirty copies what has changed, and so needs room for it.
//
// Note is Dirty without: it records what has changed, durably, and needs next to no
// room. What the layer did can be undone, and is told by Changes. Contents that are
// new in it are not kept: a view that has them again cannot be shown once another
// one was, nor can Open read them (CodeNotFound). The next Dirty stores them, as far
// as the tree has them still, or fails for want of room.
type Noter interface {
	Note(ctx context.Context, v View) (bool, error)
}

// A Mounter is a driver that can show a state only if it has a directory, or a file,
// wherever something is mounted below the tree now.
//
// Fits is CodeTreeBusy, with the names of those mounts, if the state that layers
// make up has none for some. It changes nothing.
type Mounter interface {
	Fits(ctx context.Context, layers []LayerID) error
}

// An Orderer is a driver with layers beside the record that may be on a
// filesystem which keeps the order of changes (durable.Ordered). Ordered tells
// whether it is so: no change in a new layer lasts without what was done before.
//
// WriteOut has the contents of a layer, and of files beside it, written to the
// disk, so that whatever is renamed afterwards lasts only with all of that. It is
// false, and nothing has been done, where that does not hold, or is no quicker
// than Sync.
type Orderer interface {
	Ordered() bool
	WriteOut(ctx context.Context, id LayerID, files ...string) (done bool, err error)
}

// A Rejoiner is a driver whose layers part hard links. Rejoin puts those together
// that v's open layer has parted, in the tree as it is shown, and tells whether there
// were any that could be: where several were changed, all in the same way. Nobody may
// hold the tree. Killed or failed anywhere, it has left the names that it did not come
// to, and what else it has left Changes takes away.
type Rejoiner interface {
	Rejoin(ctx context.Context, v View) (some bool, err error)
}

// Transition tells what a Show did.
type Transition struct {
	// Swapped is false when the tree showed the view already.
	Swapped bool
	// Late is true when the old open layer, clean when it was checked last, was
	// written to in the moment before it went: the writes are in that layer.
	Late bool
	// Stale, if not nil, names processes that hold files from before the tree was
	// first shown: what they write goes to base, unseen. It looks at every process
	// and may do so on any goroutine, beside the driver's other work.
	Stale func() []Holder
}

// Usage is disk space.
type Usage struct {
	Bytes  int64 `json:"bytes"`  // allocated blocks, not lengths
	Inodes int64 `json:"inodes"` // entries
}
