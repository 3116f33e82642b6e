package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

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
as docs/design.md tells. A tree that shows the right thing is left alone, so it
can be called at any time. deployx install lets systemd call it at boot.

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
	trees, err := a.statusTrees()
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range trees {
		if err := a.restoreTree(ctx, t); err != nil {
			errs = append(errs, fmt.Errorf("%s is not shown: %w", printable(t.Path), err))
		}
	}
	return errors.Join(errs...)
}

func (a *app) restoreTree(ctx context.Context, t snapshot.Tree) error {
	if _, err := os.Stat(t.Store); errors.Is(err, fs.ErrNotExist) {
		return &snapshot.Error{
			Code: snapshot.CodeNotFound, Msg: fmt.Sprintf("its files, in %q, are not there", t.Store),
			Hint: "mount the file system they are on, and call deployx restore --all again",
		}
	}
	a.tellsRecovery = true
	return a.with(ctx, t, func(s *session.Session) error {
		if err := s.Restore(ctx); err != nil {
			return err
		}
		return a.tellRestored(t, s.Recovered())
	})
}

func (a *app) tellRestored(t snapshot.Tree, r session.Recovery) error {
	if a.json {
		return a.encode(map[string]any{"event": "restored", "tree": t.Path, "reshown": r.Reshown, "unfinished": r.Unfinished})
	}
	if r.Unfinished != "" {
		a.say("deployx: %s: %s was cut off; what it had done can be rolled back", printable(t.Path), r.Unfinished)
	}
	if r.Reshown {
		a.say("deployx: %s is shown again", printable(t.Path))
	}
	for _, h := range r.Stale {
		a.say("deployx: warning: %s (pid %d) works on %s as it was before its layers: restart it", h.Name, h.PID, printable(t.Path))
	}
	return nil
}
