package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) commitCmd() *cobra.Command {
	var through string
	var force bool
	c := &cobra.Command{
		Use:   "commit",
		Short: "Make what commands did part of the directory itself, for good",
		Long: `Make everything that commands and others did, or with --through the oldest
snapshots up to and with that one, part of the directory itself. It can then no
longer be rolled back; newer snapshots can. The tree shows the same all the time
and may be in use. When nothing is left to roll back the tree is a plain directory
again, with no mount.

Refused where a snapshot that is kept (deployx keep) would go; --force commits it
too.

Killed or failed at any moment nothing is lost: the next deployx on this tree, or
deployx commit, goes on with it. Processes that hold the tree do not hinder a
commit, but the mount stays, with what they write from then on; they are named. A
reboot commits that too and unmounts, and so does the next deployx command once
they have ended, unless another command was run or something rolled back before.

Exit status: 0 done, or as far as running processes allow; 1 refused or failed,
and nothing is lost; 2 usage; 3 done, but stdout did not take the result.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.commit(c.Context(), through, force) },
	}
	c.Flags().StringVar(&through, "through", "", "the newest snapshot `id` to commit")
	c.Flags().BoolVar(&force, "force", false, "commit snapshots that are kept, too")
	a.session.register(c, false)
	return c
}

func (a *app) commit(ctx context.Context, through string, force bool) error {
	t, err := a.known()
	if err != nil {
		return err
	}
	return a.with(ctx, t, func(s *session.Session) error {
		o := session.CommitOptions{Progress: a.counting(), Force: force}
		if through != "" {
			if o.Through, err = s.Record().Resolve(through); err != nil {
				return err
			}
		}
		c, err := s.Commit(ctx, o)
		if err != nil {
			return err
		}
		if err := s.EmptyTrash(ctx); err != nil {
			return err
		}
		return a.tellCommit(c, through == "")
	})
}

func (a *app) tellCommit(c session.Committed, all bool) error {
	if a.json {
		return a.result(commitEvent(c))
	}
	switch {
	case len(c.Snapshots) == 0 && c.Paths == 0 && !c.Pending:
		a.say("deployx: there is nothing to commit")
	case c.Pending:
		a.say("deployx: %s committed, which cannot be rolled back, but the directory itself gets what they did later: the tree must be shown anew, and is held", many(len(c.Snapshots), "snapshot"))
	default:
		a.say("deployx: %s committed, %s in %s", many(len(c.Snapshots), "snapshot"), many(int(c.Paths), "path"), c.Duration.Round(100*time.Microsecond))
	}
	if c.Undone > 0 {
		a.say("deployx: %d rollbacks can no longer be taken back", c.Undone)
	}
	for _, h := range c.PinnedBy {
		a.say("deployx: held by %s: %s %s", h.Who(), h.How, printable(h.Path))
	}
	if len(c.PinnedBy) > 0 && all {
		a.say("deployx: a reboot finishes it, or stopping them and then the next deployx command on this tree, such as deployx commit")
	}
	switch {
	case c.Plain:
		a.say("deployx: the tree is a plain directory")
	case c.Remaining > 0:
		a.say("deployx: not committed: %s", many(c.Remaining, "snapshot"))
	}
	return nil
}

func commitEvent(c session.Committed) map[string]any {
	ids := []string{}
	for _, id := range c.Snapshots {
		ids = append(ids, string(id))
	}
	return map[string]any{
		"event": "commit_completed", "success": true, "committed": ids, "paths": c.Paths, "remaining": c.Remaining,
		"redo_lost": c.Undone, "pending": c.Pending, "plain": c.Plain, "pinned_by": append([]snapshot.Holder{}, c.PinnedBy...),
		"duration_ms": float64(c.Duration) / float64(time.Millisecond),
	}
}

// counting is progress for work that is counted in paths.
func (a *app) counting() func(snapshot.Progress) {
	f, ok := a.err.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd())) && !a.quiet
	if !terminal && !a.json {
		return nil
	}
	var last time.Time // the first is told at once, so that a program sees it begin
	return func(p snapshot.Progress) {
		end := p.Files == p.Total
		if time.Since(last) < progressPause && !end {
			return
		}
		last = time.Now()
		if a.json {
			json.NewEncoder(a.out).Encode(map[string]any{ //nolint:errcheck // a reader that went away does not stop the work
				"event": "progress", "phase": p.Phase, "files": p.Files, "total_files": p.Total,
			})
			return
		}
		line := fmt.Sprintf("\r\033[Kdeployx: %s: %d of %d paths", p.Phase, p.Files, p.Total)
		if end {
			line = "\r\033[K"
		}
		fmt.Fprint(a.err, line) //nolint:errcheck // nowhere to tell
	}
}
