package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"deployx/session"
	"deployx/snapshot"
)

type diffFlags struct{ patch, stat bool }

func (a *app) diffCmd() *cobra.Command {
	var f diffFlags
	c := &cobra.Command{
		Use:   "diff [ID]",
		Short: "Show what a command changed, or everything since base",
		Long: `Show the paths that a command added (A), modified (M) or deleted (D), made
another type (T), or whose mode, owner, times or attributes alone it changed
(m); renamed directories (R) stand with both names. A name that was a hard link and
became a file of its own, for the layers could not do better, is marked. Without
ID: everything since base. --patch prints a unified diff of text files that patch -p1
takes, and names what else changed. A file that became a directory, or the reverse,
takes git apply.

Exit status: 0; 1 if there is no such snapshot; 2 usage.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("diff takes one snapshot id or none")}
			}
			return nil
		},
		ValidArgsFunction: a.completeID(true),
		PreRunE: func(*cobra.Command, []string) error {
			switch {
			case f.patch && f.stat:
				return usageError{errors.New("--patch or --stat, not both")}
			case f.patch && a.json:
				return usageError{errors.New("--patch is no JSON: leave one of them out")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return a.diff(c.Context(), f, args) },
	}
	c.Flags().BoolVarP(&f.patch, "patch", "p", false, "print a unified diff")
	c.Flags().BoolVar(&f.stat, "stat", false, "print counts only")
	return c
}

func (a *app) diff(ctx context.Context, f diffFlags, args []string) error {
	t, rec, err := a.record()
	if err != nil {
		return err
	}
	id := snapshot.ID("")
	if len(args) == 1 {
		if id, err = rec.Resolve(args[0]); err != nil {
			return err
		}
	}
	return a.reading(ctx, t, func(s *session.Session) error {
		if f.patch {
			return s.Compare(ctx, id, func(c session.Comparison) error { return a.patch(ctx, c) })
		}
		return a.list(ctx, s, id, f)
	})
}

// reading is with for commands that change nothing: no lock, no mount.
func (a *app) reading(ctx context.Context, t snapshot.Tree, f func(*session.Session) error) error {
	s, err := a.open(ctx, t)
	if err != nil {
		return err
	}
	defer s.Abandon()
	return f(s)
}

func (a *app) list(ctx context.Context, s *session.Session, id snapshot.ID, f diffFlags) error {
	changes, counts := []snapshot.Change{}, snapshot.Counts{}
	err := s.Compare(ctx, id, func(c session.Comparison) error {
		return c.Changes(ctx, func(c snapshot.Change) error {
			counts.Add(c)
			if a.json {
				changes = append(changes, c)
				return nil
			}
			if f.stat {
				return nil
			}
			_, err := io.WriteString(a.out, changeLine(c))
			return err
		})
	})
	if err != nil {
		return err
	}
	if a.json {
		if f.stat {
			return a.encode(counts)
		}
		return a.encode(changes)
	}
	if f.stat {
		_, err = fmt.Fprintf(a.out, "%d added, %d modified, %d deleted\n", counts.Added, counts.Modified, counts.Deleted)
	}
	return err
}

var letters = map[snapshot.ChangeKind]string{
	snapshot.ChangeAdded: "A", snapshot.ChangeModified: "M", snapshot.ChangeDeleted: "D",
	snapshot.ChangeType: "T", snapshot.ChangeMetadata: "m", snapshot.ChangeRenamed: "R",
}

func changeLine(c snapshot.Change) string {
	name := printable(c.Path)
	if c.Type == snapshot.TypeDir {
		name += "/"
	}
	if c.From != "" {
		name = printable(c.From) + "/ -> " + name
	}
	if c.SplitLink {
		name += " (no longer a hard link)"
	}
	return letters[c.Kind] + " " + name + "\n"
}

// printable quotes a name that a terminal or a line-reading program would
// stumble over.
func printable(s string) string {
	q := fmt.Sprintf("%q", s)
	if q == `"`+s+`"` && strings.TrimSpace(s) == s && s != "" {
		return s
	}
	return q
}
