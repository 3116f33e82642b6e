package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) gcCmd() *cobra.Command {
	var keep session.Retention
	var size sizeFlag
	var all, dry bool
	c := &cobra.Command{
		Use:   "gc [--all]",
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

With --all it does so in every known tree, and goes on when one fails. A tree that
another deployx works on is skipped after a second, or after --wait; no tree is
shown or unmounted, and nothing is said of one that has nothing to let go. Without
an agent, deployx install lets systemd call that every hour.

Exit status: 0 done; 1 refused or failed, with --all in one of the trees; 2 usage; 3
done, but stdout did not take the result.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if all && a.tree != "" {
				return usageError{errors.New("say --all, or which tree with --tree")}
			}
			keep.Bytes = int64(size)
			if all {
				if !c.Flags().Changed("wait") {
					a.session.wait = upkeepWait
				}
				return a.gcAll(c.Context(), keep, dry)
			}
			return a.gc(c.Context(), keep, dry)
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every known tree")
	countVar(c.Flags(), &keep.Last, "keep-last", "", "keep only this `many` newest (0: any number)")
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
	x, err := a.collect(ctx, t, keep, dry)
	if err != nil {
		return err
	}
	if a.json {
		return a.tellEvent(cleaned(t, x, dry), dry)
	}
	a.say("deployx: %s", cleanedText(x, dry))
	return nil
}

// upkeepWait is for a tree that another deployx works on: upkeep comes again.
const upkeepWait = time.Second

func (a *app) gcAll(ctx context.Context, keep session.Retention, dry bool) error {
	a.session.forUpkeep(a.session.wait)
	var failed, untold []error
	if err := snapshot.NewState(a.stateDir()).Each(func(t snapshot.Tree, err error) {
		var x session.Expired
		if err == nil && ctx.Err() != nil {
			return
		}
		if err == nil {
			err = stored(t, "mount the file system they are on")
		}
		if err == nil {
			x, err = a.collect(ctx, t, keep, dry)
		}
		if err != nil {
			failed = append(failed, a.notCleaned(t, err))
		} else {
			untold = append(untold, a.tellCleaned(t, x, dry))
		}
	}); err != nil {
		return err
	}
	err, told := errors.Join(append(failed, ctx.Err())...), errors.Join(untold...)
	if err != nil && told != nil {
		told = errors.New(told.Error()) // what failed decides the exit status
	}
	return errors.Join(err, told)
}

func (a *app) collect(ctx context.Context, t snapshot.Tree, keep session.Retention, dry bool) (x session.Expired, err error) {
	err = a.with(ctx, t, func(s *session.Session) error {
		if x, err = s.CollectTo(ctx, keep, dry); dry {
			return err
		}
		return errors.Join(err, s.EmptyTrash(ctx))
	})
	return x, err
}

func (a *app) tellCleaned(t snapshot.Tree, x session.Expired, dry bool) error {
	if a.json {
		return a.tellEvent(cleaned(t, x, dry), dry)
	}
	if len(x.Snapshots)+len(x.Undone)+x.Discarded > 0 {
		a.say("deployx: %s: %s", printable(t.Path), cleanedText(x, dry))
	}
	return nil
}

// notCleaned is the error of a tree, but for one that another deployx works on:
// that is told, and its turn comes again.
func (a *app) notCleaned(t snapshot.Tree, err error) error {
	busy := snapshot.CodeOf(err) == snapshot.CodeTreeBusy
	told := error(nil)
	if a.json {
		told = a.encode(map[string]any{
			"event": "cleanup_completed", "tree": t.Path, "success": false, "skipped": busy, "error": err.Error(), "code": snapshot.CodeOf(err),
		})
	}
	if busy {
		a.say("deployx: %s is skipped: %v", printable(t.Path), err)
		return told
	}
	if t.Path != "" { // one that cannot even be read has none
		err = fmt.Errorf("%s is not cleaned up: %w", printable(t.Path), err)
	}
	return errors.Join(err, told)
}

func cleaned(t snapshot.Tree, x session.Expired, dry bool) map[string]any {
	return map[string]any{
		"event": "cleanup_completed", "tree": t.Path, "success": true, "expired": len(x.Snapshots), "undone": len(x.Undone),
		"layers_discarded": x.Discarded, "layers_in_use": x.InUse, "dry_run": dry,
	}
}

func cleanedText(x session.Expired, dry bool) string {
	verb := "expired"
	if dry {
		verb = "would expire"
	}
	return fmt.Sprintf("%s %s, %s gone, %s given up, %d still in use",
		many(len(x.Snapshots), "snapshot"), verb, many(len(x.Undone), "rolled-back one"), many(x.Discarded, "layer"), x.InUse)
}
