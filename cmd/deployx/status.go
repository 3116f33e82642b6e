package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) statusCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the trees: driver, mounted or not, head, snapshots, disk used, who holds them",
		Long: `Show the known trees, or with --tree one of them: driver, whether the tree is
mounted, its newest snapshot, how many there are, the mounted layers, the disk
they use, and the processes that hold the tree. It changes nothing. A tree that
cannot be read hides no other.

Exit status: 0; 1 if a tree or its record cannot be read; 2 usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.overview(c.Context()) },
	}
	c.Flags().BoolVar(&a.sizes, "sizes", false, "what each applied snapshot takes, too")
	return c
}

// treeStatus is one tree of status --json.
type treeStatus struct {
	Path      string            `json:"path"`
	Driver    string            `json:"driver"`
	Mounted   bool              `json:"mounted"`
	Agrees    bool              `json:"agrees"` // the tree shows what the record says
	Head      snapshot.ID       `json:"head,omitempty"`
	Snapshots int               `json:"snapshots"`
	Redo      int               `json:"redo"`
	Layers    int               `json:"layers"`
	MaxLayers int               `json:"max_layers"`
	Drift     bool              `json:"drift"`
	Running   snapshot.ID       `json:"running,omitempty"`
	CutOff    snapshot.ID       `json:"cut_off,omitempty"`
	Disk      snapshot.Usage    `json:"disk"`
	Derived   snapshot.Usage    `json:"derived"` // merged layers, beyond what they share with these
	PinnedBy  []snapshot.Holder `json:"pinned_by,omitempty"`
	Stale     []snapshot.Holder `json:"stale,omitempty"`      // see the directory below the mount
	Uncovered []snapshot.Mount  `json:"uncovered,omitempty"`  // mounted below the tree: no undo covers it
	Commit    snapshot.ID       `json:"committing,omitempty"` // a commit through this snapshot is not finished
	Retire    bool              `json:"retire,omitempty"`     // all is committed, and the tree will be unmounted once nobody holds it
	Aside     []string          `json:"aside,omitempty"`      // directories with what others wrote and no view could keep
	Store     string            `json:"store"`

	Durability string                `json:"durability"` // of the newest command: full or fast
	Kept       []snapshot.ID         `json:"kept,omitempty"`
	Trash      int                   `json:"trash"`     // layers given up, whose space is not free yet
	Recovered  bool                  `json:"recovered"` // something had to be put right after a crash or boot
	Recovery   *session.RecoveryNote `json:"recovery,omitempty"`
	Sizes      []session.Size        `json:"sizes,omitempty"` // with --sizes
}

// overview tells of all trees that can be read, and then of those that cannot.
func (a *app) overview(ctx context.Context) error {
	list, errs := []treeStatus{}, []error{}
	look := func(t snapshot.Tree, err error) {
		var st treeStatus
		if err == nil {
			err = there(t)
		}
		if err == nil {
			st, err = a.treeStatus(ctx, t)
		}
		switch {
		case err == nil:
			list = append(list, st)
		case t.Path != "": // else the error names the file
			err = fmt.Errorf("%s: %w", printable(t.Path), err)
			fallthrough
		default:
			errs = append(errs, err)
		}
	}
	if a.tree != "" {
		look(a.known())
	} else if err := snapshot.NewState(a.stateDir()).Each(look); err != nil {
		return err
	}
	err := errors.Join(errs...)
	if a.json {
		return a.encodeOverview(list, err)
	}
	if len(list) == 0 && err == nil {
		a.say("deployx: no tree is known in %s; deployx run --tree DIR makes one", a.stateDir())
	}
	for _, st := range list {
		err = errors.Join(err, a.printStatus(st))
	}
	return err
}

// encodeOverview prints one object: what is known, and what is in the way of the rest.
func (a *app) encodeOverview(list []treeStatus, err error) error {
	o := map[string]any{"state": a.stateDir(), "trees": list}
	if err == nil {
		return a.encode(o)
	}
	if a.tree != "" {
		return err
	}
	o["success"], o["error"], o["code"] = false, err.Error(), codeOf(err)
	return errors.Join(encoded{err}, a.encode(o))
}

func (a *app) treeStatus(ctx context.Context, t snapshot.Tree) (out treeStatus, err error) {
	err = a.reading(ctx, t, func(s *session.Session) error {
		st, err := s.Status(ctx)
		out = treeStatus{
			Path: t.Path, Driver: t.Driver, Store: t.Store,
			Mounted: st.Mounted, Agrees: st.Agrees, Head: st.Head, Snapshots: st.Snapshots, Redo: st.Redo,
			Layers: st.Layers, MaxLayers: st.MaxLayers, Drift: st.Drift, Running: st.Running, CutOff: st.CutOff, Disk: st.Disk, Derived: st.Derived, PinnedBy: st.PinnedBy,
			Stale: st.Stale, Uncovered: st.Uncovered, Commit: st.Commit, Retire: st.Retire, Aside: st.Aside,
			Durability: "full", Kept: st.Kept, Trash: st.Trash, Recovered: st.Recovered != nil, Recovery: st.Recovered,
		}
		if st.Fast {
			out.Durability = "fast"
		}
		if err == nil && a.sizes {
			out.Sizes, err = s.Sizes(ctx)
		}
		return err
	})
	return out, err
}

func (a *app) printStatus(st treeStatus) error {
	var b strings.Builder
	row := func(k, format string, args ...any) {
		fmt.Fprintf(&b, "  %-10s "+format+"\n", append([]any{k}, args...)...)
	}
	fmt.Fprintln(&b, printable(st.Path))
	row("driver", "%s", st.Driver)
	row("tree", "%s", shows(st))
	if st.Head != "" {
		row("head", "%s", st.Head)
	}
	row("snapshots", "%d applied", st.Snapshots)
	if st.Redo > 0 {
		row("redo", "%s", many(st.Redo, "time"))
	}
	if st.Running != "" {
		row("running", "%s", st.Running)
	}
	if st.CutOff != "" {
		row("cut off", "%s: the next command or rollback records what it had done", st.CutOff)
	}
	if st.Drift {
		row("drift", "others have changed the tree since the last command")
	}
	for _, h := range st.PinnedBy {
		row("held by", "%s: %s %s", h.Who(), h.How, printable(h.Path))
	}
	for _, h := range st.Stale {
		row("below it", "%s: %s %s: it sees the directory as it was before it was mounted; restart it", h.Who(), h.How, printable(h.Path))
	}
	for _, m := range st.Uncovered {
		row("uncovered", "%s: no undo covers what is in it", mountText(m))
	}
	if st.Retire && st.Commit == "" {
		row("commit", "the tree is held: once it is not, or after a reboot, the rest is committed and it is unmounted")
	}
	if st.Commit != "" {
		row("commit", "through %s, not finished: the next command, or deployx commit, goes on with it", st.Commit)
	}
	for _, dir := range st.Aside {
		row("set aside", "%s: what others wrote while a view had to be taken back; take what you need and remove it", printable(dir))
	}
	row("disk", "%s in %d files and directories", size(st.Disk.Bytes), st.Disk.Inodes)
	if st.Derived.Inodes > 0 {
		row("merged", "%s more in %d directories, so that few layers are mounted", size(st.Derived.Bytes), st.Derived.Inodes)
	}
	if st.Trash > 0 {
		row("trash", "%s, whose space is given back by and by", many(st.Trash, "layer"))
	}
	if st.Durability == "fast" {
		row("durability", "fast: a power cut may take the newest command back")
	}
	for _, id := range st.Kept {
		row("kept", "%s and what is newer do not expire", id)
	}
	if r := st.Recovery; r != nil {
		row("recovered", "%s", recovery(r))
	}
	for _, z := range st.Sizes {
		row("size", "%s: %s in %d files and directories", z.ID, size(z.Bytes), z.Nodes)
	}
	row("store", "%s", printable(st.Store))
	_, err := io.WriteString(a.out, b.String())
	return err
}

// recovery tells what was found the last time.
func recovery(r *session.RecoveryNote) string {
	s := r.Time.Format(time.DateTime) + ":"
	if r.Reshown {
		s += " the tree was shown again"
	}
	if r.Unfinished != "" {
		s += fmt.Sprintf(" %s (%s) was cut off", short(r.Unfinished), oneLine(r.Command, 40))
	}
	if r.RolledBack {
		s += " and rolled back"
	}
	return s
}

func shows(st treeStatus) string {
	s := "a plain directory"
	if st.MaxLayers == 0 && st.Layers > 1 {
		s += ", " + many(st.Layers-1, "layer")
	}
	if st.Mounted {
		s = fmt.Sprintf("mounted, %d of at most %d layers below the open one", st.Layers, st.MaxLayers)
	}
	if !st.Agrees {
		s += "; NOT what the record says: the next command puts it right"
	}
	return s
}

// many is n things, in words.
func many(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// size is a number of bytes that a glance takes in.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/unit, 0
	for ; f >= unit && i < 4; i++ {
		f /= unit
	}
	return fmt.Sprintf("%.1f %ciB", f, "KMGTP"[i])
}
