package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) restoreCmd() *cobra.Command {
	all := false
	c := &cobra.Command{
		Use:   "restore --all | --tree DIR",
		Short: "Show trees again after a boot, and settle what was cut off",
		Long: `Make every known tree, or one, show what its record says: after a boot nothing is
mounted any more. A command or rollback that the end of the host cut off is settled
as docs/design.md tells; commits that it cut off are finished when all trees are
shown. A tree that shows the right thing is left alone, so it can be called at any
time. deployx install lets systemd call it at boot.

Processes that stood in a tree before it was shown see the directory below it; they
are named, by deployx status too, and need a restart.

Exit status: 0 every tree is shown; 1 one is not, and the others are; 2 usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if all == (a.tree != "") {
				return usageError{errors.New("say --all, or which tree with --tree")}
			}
			return a.restore(c.Context())
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every known tree")
	a.session.register(c, false)
	return c
}

func (a *app) restore(ctx context.Context) error {
	var errs []error
	var cut []snapshot.Tree // trees with a commit that is not finished
	show := func(t snapshot.Tree, err error) {
		if err == nil {
			var r session.Restored
			if r, err = a.restoreTree(ctx, t); r.Commit {
				cut = append(cut, t)
			}
		}
		if err != nil {
			errs = append(errs, a.notShown(t, err))
		}
	}
	if a.tree != "" {
		show(a.known())
	} else if err := snapshot.NewState(a.stateDir()).Each(show); err != nil {
		return err
	}
	for _, t := range cut {
		errs = append(errs, a.with(ctx, t, func(s *session.Session) error { return s.FinishCommit(ctx) }))
	}
	return errors.Join(errs...)
}

// notShown is the error of a tree; one that cannot even be read has no path.
func (a *app) notShown(t snapshot.Tree, err error) error {
	if t.Path != "" {
		err = fmt.Errorf("%s is not shown: %w", printable(t.Path), err)
	}
	if !a.json {
		return err
	}
	return errors.Join(err, a.encode(map[string]any{
		"event": "restored", "tree": t.Path, "success": false, "error": err.Error(), "code": snapshot.CodeOf(err),
	}))
}

func (a *app) restoreTree(ctx context.Context, t snapshot.Tree) (r session.Restored, err error) {
	if err := stored(t, "mount the file system they are on, and call deployx restore --all again"); err != nil {
		return r, err
	}
	a.tellsRecovery = true
	err = a.with(ctx, t, func(s *session.Session) (err error) {
		start := time.Now()
		if r, err = s.Restore(ctx); err != nil {
			return err
		}
		return a.tellRestored(t, r, s.Recovered(), time.Since(start))
	})
	return r, err
}

func (a *app) tellRestored(t snapshot.Tree, s session.Restored, r session.Recovery, took time.Duration) error {
	if a.json {
		return a.result(map[string]any{
			"event": "restored", "tree": t.Path, "success": true, "reshown": r.Reshown, "unfinished": r.Unfinished, "layers": s.Layers,
			"stale": append([]snapshot.Holder{}, r.Stale...), "duration_ms": float64(took) / float64(time.Millisecond),
		})
	}
	if r.Unfinished != "" {
		a.say("deployx: %s: %s was cut off; what it had done can be rolled back", printable(t.Path), r.Unfinished)
	}
	if r.Reshown {
		a.say("deployx: %s is shown again, %d layers, in %s", printable(t.Path), s.Layers, took.Round(100*time.Microsecond))
	}
	for _, h := range r.Stale {
		a.say("deployx: warning: %s (pid %d) works on %s as it was before its layers: restart it", printable(h.Name), h.PID, printable(t.Path))
	}
	return nil
}
