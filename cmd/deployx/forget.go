package main

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/spf13/cobra"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) forgetCmd() *cobra.Command {
	var o session.ForgetOptions
	c := &cobra.Command{
		Use:   "forget",
		Short: "Unmount a tree and remove everything that deployx keeps of it",
		Long: `Unmount a tree and remove what deployx keeps of it: record, contexts, outputs,
layers and its entry in the state directory. The directory stays as it is, a plain
one. Refused while commands could still be rolled back, or others have changed the
tree, unless --commit makes all that part of the directory first; and while
processes hold the mount. What had been rolled back cannot be redone afterwards.
Refused where a snapshot that is kept (deployx keep) would go, one that was rolled
back included; --force forgets it too.

Exit status: 0 done; 1 refused or failed, and nothing is lost; 2 usage; 3
done, but stdout did not take the result.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.forget(c.Context(), o) },
	}
	c.Flags().BoolVar(&o.Commit, "commit", false, "commit everything first")
	c.Flags().BoolVar(&o.Force, "force", false, "forget snapshots that are kept, too")
	a.session.register(c, false)
	return c
}

func (a *app) forget(ctx context.Context, o session.ForgetOptions) (err error) {
	t, err := a.known()
	if err != nil {
		return err
	}
	a.forgets = true
	// No deployx adds a tree meanwhile.
	l, err := snapshot.WaitLock(ctx, filepath.Join(a.stateDir(), "lock"), nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Unlock()) }()
	return a.with(ctx, t, func(s *session.Session) error {
		o.Progress = a.counting()
		f, err := s.ForgetTree(ctx, o)
		if err != nil {
			return err
		}
		if a.json {
			return a.result(map[string]any{
				"event": "forget_completed", "success": true, "tree": t.Path, "removed": f.Removed,
				"committed": commitEvent(f.Committed)["committed"], "redo_lost": f.Undone,
			})
		}
		if n := len(f.Committed.Snapshots); n > 0 {
			a.say("deployx: %s committed", many(n, "snapshot"))
		}
		if f.Undone > 0 {
			a.say("deployx: gone for good: %s, rolled back before", many(f.Undone, "command"))
		}
		for _, r := range f.Removed {
			a.say("deployx: removed %s", printable(r))
		}
		a.say("deployx: %s is a plain directory that deployx does not know", printable(t.Path))
		return nil
	})
}
