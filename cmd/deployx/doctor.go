package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"deployx/fallback"
	"deployx/overlay"
	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

func (a *app) doctorCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Tell which driver this host and this tree get, and why",
		Long: `Try on this host, and with --tree on that tree, everything that the drivers
need, and tell which one a new tree gets. Nothing is guessed from versions. It
works below the state directory and leaves nothing behind.

Exit status: 0; 1 if no driver works; 2 usage.`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error { return a.doctor() },
	}
}

// diagnosis is doctor --json.
type diagnosis struct {
	Tree    string                      `json:"tree,omitempty"`
	Store   string                      `json:"store"`
	Driver  string                      `json:"driver"` // "" if none works
	Why     string                      `json:"why"`
	Layout  string                      `json:"layout,omitempty"`
	Drivers map[string][]snapshot.Check `json:"drivers"`
	Shells  []string                    `json:"shells"`
}

func (a *app) doctor() error {
	d, err := a.diagnose()
	if err != nil {
		return err
	}
	if a.json {
		err = a.encode(d)
	} else {
		a.printDiagnosis(d)
	}
	if err == nil && d.Driver == "" {
		return exitStatus(exitRefused)
	}
	return err
}

// leaveNothing returns what removes the directories made to try things in: what is
// not empty is not ours alone, and stays.
func (a *app) leaveNothing(store string) func() {
	var made []string
	if store != a.stateDir() {
		made = append(made, store, filepath.Dir(store)) // which is "trees", or ".deployx"
	}
	if _, err := os.Lstat(a.stateDir()); errors.Is(err, fs.ErrNotExist) {
		made = append(made, a.stateDir())
	}
	return func() {
		for _, dir := range made {
			os.Remove(dir) //nolint:errcheck // see above
		}
	}
}

func (a *app) diagnose() (diagnosis, error) {
	state := a.stateDir()
	d := diagnosis{Store: state, Shells: shell.Installed(), Drivers: map[string][]snapshot.Check{}}
	probed := state
	if a.tree != "" {
		if t, err := a.known(); err == nil {
			d.Tree, d.Store, d.Driver, d.Why = t.Path, t.Store, t.Driver, "the tree was recorded with it"
		} else {
			path, err := session.CheckTree(a.abs(a.tree), state)
			if err != nil {
				return d, err
			}
			d.Tree, d.Store = path, session.ChooseStore(path, state)
		}
		probed = d.Tree
		d.Layout = overlay.LayoutFor(d.Tree, d.Store)
	}
	defer a.leaveNothing(d.Store)()
	d.Drivers[overlay.Name] = overlay.Probe(probed, d.Store)
	d.Drivers[fallback.Name] = fallback.Probe(probed, d.Store)
	if d.Driver == "" {
		d.choose()
	}
	return d, nil
}

func (d *diagnosis) choose() {
	ok, why := snapshot.Usable(d.Drivers[overlay.Name])
	if ok {
		d.Driver, d.Why = overlay.Name, "layers can be mounted here"
		return
	}
	d.Why = "overlay cannot be had: " + why
	if ok, why := snapshot.Usable(d.Drivers[fallback.Name]); ok {
		d.Driver = fallback.Name
	} else {
		d.Why += "; files cannot be copied either: " + why
	}
}

func (a *app) printDiagnosis(d diagnosis) {
	p := func(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) } //nolint:errcheck // a report
	if d.Tree != "" {
		p("tree    %s", printable(d.Tree))
	}
	p("store   %s", printable(d.Store))
	for _, name := range []string{overlay.Name, fallback.Name} {
		p("\n%s", name)
		for _, c := range d.Drivers[name] {
			p("  %-4s %s%s", mark(c), c.Name, detail(c))
		}
	}
	if d.Layout != "" {
		p("\nlayout  %s", d.Layout)
	}
	if d.Driver == "" {
		p("\nno driver works here: %s", d.Why)
		return
	}
	p("\ndriver  %s (%s)", d.Driver, d.Why)
}

func mark(c snapshot.Check) string {
	switch {
	case c.OK:
		return "yes"
	case c.Needed:
		return "NO"
	}
	return "no"
}

func detail(c snapshot.Check) string {
	if c.Detail == "" {
		return ""
	}
	return ": " + c.Detail
}
