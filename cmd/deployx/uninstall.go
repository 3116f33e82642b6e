package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"deployx/fallback"
	"deployx/snapshot"
)

func (a *app) uninstallCmd() *cobra.Command {
	f, keep := &installFlags{}, false
	c := &cobra.Command{
		Use:   "uninstall",
		Short: "Take away what install wrote, once the trees are plain directories again",
		Long: `Stop the agent or the timer of gc and take away the units that deployx install
wrote. Refused while a tree has layers, for without the units it would show after a
reboot what it was before them: make them permanent first, with deployx commit, or
say --keep-trees.
Records and snapshots stay where they are. A second time it does nothing.

Exit status: 0; 1 refused or failed, and nothing was taken away; 2 usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.uninstall(c.Context(), f, keep) },
	}
	f.register(c)
	c.Flags().BoolVar(&keep, "keep-trees", false, "also while trees have layers: they will not be shown after a reboot")
	return c
}

func (a *app) uninstall(ctx context.Context, f *installFlags, keep bool) error {
	s := systemd{dir: a.unitDir(f), live: f.root == "" && f.unitDir == ""}
	if err := s.need("uninstall", "there is nothing to take away; --root DIR works on a system that does not run"); err != nil {
		return err
	}
	for _, u := range unitsOfInstall() {
		if _, err := s.owned(u.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	layered, err := a.layered(ctx, f.root)
	if err == nil && !keep {
		err = refuseLayered(layered)
	}
	if err != nil && !keep {
		return err
	}
	if err := a.removeUnits(s); err != nil {
		return err
	}
	for _, t := range layered {
		a.say("deployx: after a reboot %q shows what it was before its layers, until deployx restore --all", t)
	}
	return nil
}

func (a *app) removeUnits(s systemd) error {
	gone, err := a.takeAway(s, unitsOfInstall()...)
	if err != nil {
		return err
	}
	if !gone {
		a.say("deployx: there is nothing of deployx install in %s", s.dir)
		return nil
	}
	return s.reload()
}

// takeAway stops and removes units that we wrote; some tells whether there were
// any.
func (a *app) takeAway(s systemd, units ...unit) (some bool, err error) {
	for _, u := range units {
		if _, err := s.owned(u.name); err == nil {
			if err := s.call("stop", u.name); err != nil {
				return some, err
			}
		}
		had, err := s.remove(u.name, u.wantedBy)
		if err != nil {
			return some, err
		}
		if had {
			some = true
			a.say("deployx: %s is gone", filepath.Join(s.dir, u.name))
		}
	}
	return some, nil
}

// layered are the trees that would not come back by themselves after a reboot.
// The copy driver's files are in place.
func (a *app) layered(ctx context.Context, root string) (paths []string, err error) {
	b := *a
	if root != "" {
		b.state = filepath.Join(a.abs(root), a.stateDir())
	}
	trees, err := snapshot.NewState(b.stateDir()).Trees()
	if err != nil {
		return nil, err
	}
	for _, t := range trees {
		if t.Driver == fallback.Name {
			continue
		}
		if root == "" { // a record of another system names paths of that one
			st, err := a.treeStatus(ctx, t)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", t.Path, err)
			}
			if st.Snapshots == 0 && !st.Drift && !st.Mounted {
				continue
			}
		}
		paths = append(paths, t.Path)
	}
	return paths, nil
}

func refuseLayered(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	return &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: "trees have layers, and nothing would show them after a reboot:", Paths: paths,
		Hint: "make them permanent with deployx commit --tree DIR, or say --keep-trees",
	}
}
