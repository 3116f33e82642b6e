package session

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"deployx/snapshot"
)

// Status is what is known of a tree without touching it.
type Status struct {
	Mounted   bool           // a mount shows it
	Agrees    bool           // it shows what the record says
	Head      snapshot.ID    // "" is base
	Snapshots int            // applied commands
	Redo      int            // rollbacks that can be undone
	Layers    int            // stacked, base included
	MaxLayers int            // 0: nothing is stacked, so there is no limit
	Drift     bool           // others have written since the last command
	Running   snapshot.ID    // a command that runs now
	CutOff    snapshot.ID    // one that was cut off; the next command or rollback records it so
	Disk      snapshot.Usage // of all layers
	Derived   snapshot.Usage // of what was merged from them, beyond what it shares with them
	PinnedBy  []snapshot.Holder
	Fast      bool              // the newest command was reported before it was flushed
	Kept      []snapshot.ID     // that do not expire
	Trash     int               // layers given up whose space is not free yet
	Recovered *RecoveryNote     // the last time that something had to be put right
	Stale     []snapshot.Holder // stand in base, below the mount
	Uncovered []snapshot.Mount  // mounted below it
	Commit    snapshot.ID       // a commit through this entry is not finished
	Retire    bool              // all was to be committed, and the tree is held: see snapshot.Head
	Aside     []string          // directories with what others wrote and no view could keep: docs/design.md, "Going back"
}

// Status looks at the tree and the record. It takes no lock and changes
// nothing; what a command is doing meanwhile may show in part.
func (s *Session) Status(ctx context.Context) (st Status, err error) {
	h := s.rec.Head()
	v, err := s.rec.View(h)
	if err != nil {
		return st, err
	}
	shown, err := s.drv.Shown(ctx)
	if err != nil {
		return st, err
	}
	st.Mounted, st.Agrees, st.Head, st.Redo = shown != "", shown == h.Open, h.Snapshot, len(h.Redo)
	st.Layers, st.MaxLayers = s.drv.Depth(v)
	st.Mounted = st.Mounted && st.MaxLayers > 0
	begun, runs, ok, err := s.rec.Begun(filepath.Join(s.o.Tree.Store, "lock"))
	switch {
	case err != nil:
		return st, err
	case runs:
		st.Running = begun.ID
	case ok:
		st.CutOff = begun.ID
	}
	for e, err := range s.rec.Chain(h.Snapshot) {
		if err != nil {
			return st, err
		}
		if e.Kind == snapshot.KindCommand {
			st.Snapshots++
		}
	}
	top, err := s.newestCommand()
	if err != nil {
		return st, err
	}
	st.Fast, st.Recovered, st.Trash = top.Fast, s.lastRecovery(), s.trash()
	if st.Kept, err = s.rec.Pinned(); err != nil {
		return st, err
	}
	if st.PinnedBy, err = s.holdersAnywhere(ctx); err != nil {
		return st, err
	}
	st.Commit, st.Retire, st.Uncovered = h.Committing, h.Retire, s.uncovered()
	if st.Aside, err = s.aside(); err != nil {
		return st, err
	}
	if d, ok := s.drv.(interface {
		Stale(context.Context) ([]snapshot.Holder, error)
	}); ok {
		if st.Stale, err = d.Stale(ctx); err != nil {
			return st, err
		}
	}
	if st.Agrees && shown != "" && st.Running == "" && st.CutOff == "" && !s.owned(h) { // what a command did is not others'
		if st.Drift, err = s.drifted(ctx, h, v); err != nil {
			return st, err
		}
	}
	if st.Disk, err = s.disk(ctx); err != nil {
		return st, err
	}
	if d, ok := s.drv.(snapshot.Deriver); ok {
		st.Derived, err = d.Derived(ctx)
	}
	return st, err
}

// aside lists what only people may remove.
func (s *Session) aside() ([]string, error) { return s.inLayers("aside") }

// trash counts what EmptyTrash would remove.
func (s *Session) trash() int {
	list, _ := s.inLayers("trash") //nolint:errcheck // 0 is as good
	return len(list)
}

// inLayers lists what is in a directory beside the layers.
func (s *Session) inLayers(sub string) (list []string, err error) {
	dir := filepath.Join(s.o.Tree.Store, "layers", sub)
	names, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, n := range names {
		list = append(list, filepath.Join(dir, n.Name()))
	}
	return list, nil
}
