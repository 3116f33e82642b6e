package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) keepCmd() *cobra.Command {
	var off bool
	c := &cobra.Command{
		Use:   "keep [--off] [ID]",
		Short: "Keep a snapshot from expiring",
		Long: `Keep a snapshot: it does not expire, so that it can be rolled back to until
keep --off. All newer snapshots are kept with it, for they stand on it, and so is
the space that they take. Neither deployx gc nor, without --force, deployx commit
takes it away. Without an ID: list those that are kept.

Exit status: 0; 1 refused or failed; 2 usage; 3 done, but stdout did not take the
result.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || off && len(args) == 0 {
				return usageError{errors.New("name one snapshot")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return a.keep(c.Context(), args, off) },
	}
	c.Flags().BoolVar(&off, "off", false, "let it expire again")
	a.session.register(c, false)
	return c
}

func (a *app) keep(ctx context.Context, args []string, off bool) error {
	t, rec, err := a.record()
	if err != nil {
		return err
	}
	if len(args) == 0 {
		return a.listKept(rec)
	}
	id, err := rec.Resolve(args[0])
	if err != nil {
		return err
	}
	return a.with(ctx, t, func(s *session.Session) error {
		if err := s.Keep(ctx, id, off); err != nil {
			return err
		}
		if a.json {
			return a.result(map[string]any{"event": "keep_completed", "success": true, "snapshot_id": id, "kept": !off})
		}
		if off {
			a.say("deployx: %s may expire", short(id))
			return nil
		}
		a.say("deployx: %s is kept, and with it all newer ones; deployx keep --off %s lets them expire", short(id), short(id))
		return nil
	})
}

func (a *app) listKept(rec *snapshot.Record) error {
	ids, err := rec.Pinned()
	if err != nil {
		return err
	}
	if a.json {
		return a.encode(append([]snapshot.ID{}, ids...))
	}
	for _, id := range ids {
		if _, err := fmt.Fprintln(a.out, id); err != nil {
			return err
		}
	}
	return nil
}
