package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"deployx/internal/wire"
	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

var completions = map[string]func(c *cobra.Command) error{
	"bash": func(c *cobra.Command) error { return c.GenBashCompletionV2(c.OutOrStdout(), true) },
	"zsh":  func(c *cobra.Command) error { return c.GenZshCompletion(c.OutOrStdout()) },
	"fish": func(c *cobra.Command) error { return c.GenFishCompletion(c.OutOrStdout(), true) },
}

func (a *app) completionCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes commands, flags, trees and snapshot ids",
		Long: `Print a completion script for a shell. To load it:

  bash:  source <(deployx completion bash)
  zsh:   deployx completion zsh > "${fpath[1]}/_deployx"
  fish:  deployx completion fish > ~/.config/fish/completions/deployx.fish

Exit status: 0; 2 usage.`,
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || completions[args[0]] == nil {
				return usageError{fmt.Errorf("name the shell: bash, zsh or fish")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			root := c.Root()
			root.SetOut(a.out)
			return completions[args[0]](root)
		},
	}
}

// completeFlags completes the values of flags that have few.
func (a *app) completeFlags(root *cobra.Command) {
	values := map[string]func() []string{
		"driver":     fixed("auto", "overlay", "copy"),
		"on-pinned":  fixed(string(session.Seal), string(session.Share), string(session.Refuse), string(session.Stop)),
		"drift":      fixed(string(session.DriftKeep), string(session.DriftRefuse), string(session.DriftDrop)),
		"durability": fixed("full", "fast"),
		"shell":      shell.Installed,
		"batch":      a.batches,
	}
	for _, c := range append(root.Commands(), root) {
		for name, f := range values {
			if c.Flags().Lookup(name) != nil || c.PersistentFlags().Lookup(name) != nil {
				err := c.RegisterFlagCompletionFunc(name, func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
					return f(), cobra.ShellCompDirectiveNoFileComp
				})
				cobra.CheckErr(err) // only a second registration fails
			}
		}
	}
	cobra.CheckErr(root.MarkPersistentFlagDirname("tree"))
	cobra.CheckErr(root.MarkPersistentFlagDirname("state"))
}

func fixed(values ...string) func() []string { return func() []string { return values } }

// batches are those of the applied commands, newest first.
func (a *app) batches() (ids []string) {
	list, err := a.applied(false)
	if err != nil {
		return nil
	}
	seen := map[string]bool{"": true}
	for _, m := range list {
		if !seen[m.BatchID] {
			seen[m.BatchID] = true
			ids = append(ids, oneLine(m.BatchID, wire.MaxID)+"\t"+oneLine(m.Command, 40))
		}
	}
	return ids
}

func (a *app) applied(all bool) ([]wire.Metadata, error) {
	t, rec, err := a.record()
	if err != nil {
		return nil, err
	}
	return history(t, rec, 0, all)
}

// completeID completes a snapshot id, newest first, with what tells it from
// others.
func (a *app) completeID(all bool) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		list, err := a.applied(all)
		if err != nil || len(args) > 0 {
			return nil, directive
		}
		var ids []string
		for _, m := range list {
			if strings.HasPrefix(m.SnapshotID, strings.ToLower(typed)) {
				ids = append(ids, fmt.Sprintf("%s\t%s ago: %s", short(snapshot.ID(m.SnapshotID)), age(m.AgeSeconds), oneLine(title(m), 60)))
			}
		}
		return ids, directive
	}
}
