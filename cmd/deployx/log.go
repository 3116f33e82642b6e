package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/snapshot"
)

func (a *app) logCmd() *cobra.Command {
	var n int
	var all bool
	c := &cobra.Command{
		Use:   "log",
		Short: "List what was done, newest first",
		Long: `List the snapshots, newest first: id, age, exit status, batch, what changed
(added, modified, deleted) and the command. Changes that others made between
commands stand as drift. A command that runs, or was cut off and not found so by
any deployx yet, comes first; what it changed is not counted yet. --all shows
rolled-back ones too.

Exit status: 0; 1 if the record cannot be read; 2 usage.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.log(n, all) },
	}
	countVar(c.Flags(), &n, "number", "n", "at most this many (0: all)")
	c.Flags().BoolVar(&all, "all", false, "rolled-back ones too")
	return c
}

func (a *app) record() (snapshot.Tree, *snapshot.Record, error) {
	t, err := a.known()
	if err != nil {
		return t, nil, err
	}
	return a.recordOf(t)
}

func (a *app) recordOf(t snapshot.Tree) (snapshot.Tree, *snapshot.Record, error) {
	if err := stored(t, lostFiles(t)); err != nil {
		return t, nil, err
	}
	r, err := snapshot.OpenRecord(filepath.Join(t.Store, "record"))
	return t, r, err
}

func (a *app) log(n int, all bool) error {
	t, rec, err := a.record()
	if err != nil {
		return err
	}
	list, err := begun(t, rec)
	if err != nil {
		return err
	}
	if n == 0 || len(list) < n {
		rest, err := history(t, rec, max(0, n-len(list)), all)
		if err != nil {
			return err
		}
		list = append(list, rest...)
	}
	if a.json {
		return a.encode(list)
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	for _, m := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t+%d ~%d -%d\t%s\n", //nolint:errcheck // Flush tells
			short(snapshot.ID(m.SnapshotID)), age(m.AgeSeconds), outcome(m), oneLine(m.BatchID, wire.MaxID),
			m.Changes.Added, m.Changes.Modified, m.Changes.Deleted, oneLine(title(m), 100))
	}
	return w.Flush()
}

func history(t snapshot.Tree, rec *snapshot.Record, n int, all bool) ([]wire.Metadata, error) {
	list, now := []wire.Metadata{}, time.Now()
	if !all {
		for s, err := range rec.Chain(rec.Head().Snapshot) {
			if err != nil {
				return nil, err
			}
			if n > 0 && len(list) == n {
				break
			}
			list = append(list, wire.Describe(s, t, "applied", now))
		}
		return list, nil
	}
	applied := map[snapshot.ID]bool{}
	for s, err := range rec.Chain(rec.Head().Snapshot) {
		if err != nil {
			return nil, err
		}
		applied[s.ID] = true
	}
	ids, err := rec.All()
	if err != nil {
		return nil, err
	}
	for i := len(ids) - 1; i >= 0 && (n <= 0 || len(list) < n); i-- {
		if rec.Expired(ids[i]) { // expired or committed: a mark of where history ends
			break
		}
		s, err := rec.Snapshot(ids[i])
		if err != nil {
			return nil, err
		}
		state := "rolled_back"
		if applied[s.ID] {
			state = "applied"
		}
		list = append(list, wire.Describe(s, t, state, now))
	}
	return list, nil
}

// begun is the command that was started and is not recorded yet: it runs, or was cut
// off, as the next deployx will record it.
func begun(t snapshot.Tree, rec *snapshot.Record) ([]wire.Metadata, error) {
	s, state, err := begunNow(t, rec)
	if err != nil || state == "" {
		return []wire.Metadata{}, err
	}
	return []wire.Metadata{wire.Describe(s, t, state, time.Now())}, nil
}

// begunNow is begun's one, and its state; "" if there is none.
func begunNow(t snapshot.Tree, rec *snapshot.Record) (s snapshot.Snapshot, state string, err error) {
	s, runs, ok, err := rec.Begun(filepath.Join(t.Store, "lock"))
	switch {
	case err != nil || !ok:
		return s, "", err
	case runs:
		state = "running"
	default:
		state, s.Unfinished = "applied", true
	}
	s.ExitCode = -1
	return s, state, nil
}

// one is a snapshot, and its state, as log lists it.
func one(t snapshot.Tree, rec *snapshot.Record, id snapshot.ID) (s snapshot.Snapshot, state string, err error) {
	s, state, err = begunNow(t, rec)
	if err != nil || state != "" && s.ID == id {
		return s, state, err
	}
	if s, err = rec.Snapshot(id); err != nil {
		return s, "", err
	}
	if _, err := rec.Above(id); err == nil {
		return s, "applied", nil
	}
	return s, "rolled_back", nil
}

func title(m wire.Metadata) string {
	if m.Kind == snapshot.KindDrift && len(m.Kept) > 0 {
		return "(changes made by others, kept)"
	}
	if m.Kind == snapshot.KindDrift {
		return "(changes made by others)"
	}
	return m.Command
}

func outcome(m wire.Metadata) string {
	s := fmt.Sprintf("exit %d", m.ExitCode)
	switch {
	case m.State == "running":
		s = "running"
	case m.Kind == snapshot.KindDrift:
		s = "drift"
	case m.Unfinished:
		s = "unfinished"
	case m.TimedOut:
		s = "timed out"
	case m.Interrupted:
		s = "interrupted"
	case m.Signal != "":
		s = m.Signal
	}
	if m.State == "rolled_back" {
		s += ", undone"
	}
	return s
}

// age is a duration that a glance takes in.
func age(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// safe keeps a terminal from acting on what a command is made of; newlines and
// tabs stay.
func safe(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0) {
			return '·'
		}
		return r
	}, s)
}

// oneLine makes a command fit on a line and keeps a terminal safe from it.
func oneLine(s string, limit int) string {
	s = strings.NewReplacer("\n", "↵", "\t", " ").Replace(safe(s))
	if r := []rune(s); len(r) > limit {
		return string(r[:limit-1]) + "…"
	}
	return s
}

func (a *app) showCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one snapshot: metadata, exit status, duration, changes, the end of its output",
		Long: `Show one snapshot: metadata, exit status, duration, changes and the end of its
output. An id may be given as any unique prefix.

Exit status: 0; 1 if there is no such snapshot, or several; 2 usage.`,
		Args: oneID, ValidArgsFunction: a.completeID(true),
		RunE: func(c *cobra.Command, args []string) error { return a.show(c.Context(), args[0]) },
	}
}

func oneID(c *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{fmt.Errorf("%s takes one snapshot id", c.Name())}
	}
	return nil
}

func (a *app) show(ctx context.Context, prefix string) error {
	t, rec, err := a.record()
	if err != nil {
		return err
	}
	id, err := rec.Resolve(prefix)
	if err != nil {
		return err
	}
	s, state, err := one(t, rec, id)
	if err != nil {
		return err
	}
	m := wire.Describe(s, t, state, time.Now())
	tail, err := os.ReadFile(filepath.Join(t.Store, "output", string(id)))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	if a.json {
		if state != "running" {
			m.SizeBytes = a.sizeOf(ctx, t, s)
		}
		return a.encode(struct {
			wire.Metadata
			Output    string `json:"output"`
			Truncated bool   `json:"truncated"`
		}{m, string(tail), s.Truncated})
	}
	return a.showText(m, s, tail)
}

// sizeOf is 0 where the layer cannot be looked at, which is no reason to show nothing.
func (a *app) sizeOf(ctx context.Context, t snapshot.Tree, e snapshot.Snapshot) (n int64) {
	err := a.reading(ctx, t, func(s *session.Session) (err error) {
		n, err = s.Size(ctx, e)
		return err
	})
	if err != nil {
		return 0
	}
	return n
}

func (a *app) showText(m wire.Metadata, s snapshot.Snapshot, tail []byte) error {
	w := tabwriter.NewWriter(a.out, 0, 8, 1, ' ', 0)
	row := func(k string, format string, args ...any) {
		fmt.Fprintf(w, k+":\t"+format+"\n", args...) //nolint:errcheck // Flush tells
	}
	row("snapshot", "%s (%s)", m.SnapshotID, m.State)
	row("tree", "%s", printable(m.Tree))
	if m.BatchID != "" {
		row("batch", "%s, command %d", oneLine(m.BatchID, wire.MaxID), m.CommandIndex)
	}
	row("command", "%s", strings.ReplaceAll(safe(title(m)), "\n", "\n\t"))
	row("directory", "%s", printable(m.Dir))
	row("started", "%s (%s ago)", m.Timestamp.Format(time.RFC3339), age(m.AgeSeconds))
	row("duration", "%s", s.Duration.Round(time.Millisecond))
	row("ended", "%s", outcome(m))
	row("changes", "%d added, %d modified, %d deleted", m.Changes.Added, m.Changes.Modified, m.Changes.Deleted)
	if len(m.SplitLinks) > 0 {
		row("split links", "%s", splitText(m.SplitLinks))
	}
	if m.SharedWith != "" {
		row("shares", "one rollback point with %s, held by %s", short(snapshot.ID(m.SharedWith)), names(m.PinnedBy))
	}
	if m.Mode == snapshot.ModeSealed && len(m.PinnedBy) > 0 {
		row("sealed", "by a copy, for the tree was held by %s", names(m.PinnedBy))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if s.Truncated {
		fmt.Fprintf(a.out, "\n(only the end of the output was kept)") //nolint:errcheck // the next write tells
	}
	_, err := fmt.Fprintf(a.out, "\n%s", tail)
	return err
}
