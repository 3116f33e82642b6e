package main

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deployx/session"
)

func (a *app) gcCmd() *cobra.Command {
	var keep session.Retention
	var size sizeFlag
	var dry bool
	c := &cobra.Command{
		Use:   "gc",
		Short: "Let old snapshots expire and give their space back",
		Long: `Let snapshots expire that are older than --keep-for, or not among the newest
--keep-last, or beyond what fits into --max-bytes, newest first: they can no
longer be rolled back to, but what their commands did stays, as one layer, and
newer snapshots go on working. What was rolled back before that goes for good.
The tree need not be idle and never leaves view; layers that the mounted tree
still stands on go after the next command that changes something. A snapshot that
is kept (deployx keep) does not expire, nor does what is newer. What is rolled
back and can be redone counts for --max-bytes after what is applied, and goes
first; with --undone all of it goes, which gives the space of a rollback back at
once.

Exit status: 0 done; 1 refused or failed; 2 usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if keep.Last < 0 {
				return usageError{errors.New("--keep-last is a number of snapshots, 0 for any")}
			}
			keep.Bytes = int64(size)
			return a.gc(c.Context(), keep, dry)
		},
	}
	c.Flags().IntVar(&keep.Last, "keep-last", 0, "keep only this `many` newest (0: any number)")
	c.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName { return pflag.NormalizedName(renamed(name)) })
	c.Flags().Var(&size, "max-bytes", "keep only the newest that together take no more than this (0: any number)")
	durationVar(c.Flags(), &keep.Age, "keep-for", 24*time.Hour, "keep snapshots younger than this")
	c.Flags().BoolVar(&keep.Undone, "undone", false, "let go of what is rolled back: redo is no longer possible")
	c.Flags().BoolVar(&dry, "dry-run", false, "tell what would be done and do nothing")
	a.session.register(c, false)
	return c
}

func (a *app) gc(ctx context.Context, keep session.Retention, dry bool) error {
	t, err := a.known()
	if err != nil {
		return err
	}
	return a.with(ctx, t, func(s *session.Session) error {
		x, err := s.CollectTo(ctx, keep, dry)
		if err != nil {
			return err
		}
		if !dry {
			if err := s.EmptyTrash(ctx); err != nil {
				return err
			}
		}
		if a.json {
			return json.NewEncoder(a.out).Encode(map[string]any{
				"event": "cleanup_completed", "expired": len(x.Snapshots), "undone": len(x.Undone),
				"layers_discarded": x.Discarded, "layers_in_use": x.InUse, "dry_run": dry,
			})
		}
		verb := "expired"
		if dry {
			verb = "would expire"
		}
		a.say("deployx: %s %s, %s gone, %s given up, %d still in use",
			many(len(x.Snapshots), "snapshot"), verb, many(len(x.Undone), "rolled-back one"), many(x.Discarded, "layer"), x.InUse)
		return nil
	})
}
