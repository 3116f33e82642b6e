package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"deployx/agent"
	"deployx/snapshot"
)

// installFlags are those of install that are not the agent's.
type installFlags struct {
	root, unitDir, binary string
	agent, dry, noStart   bool
}

func (a *app) installCmd() *cobra.Command {
	f, of := &installFlags{}, &agentFlags{}
	c := &cobra.Command{
		Use:   "install [--url URL | --agent] [flags]",
		Short: "Make systemd show the trees at boot, before services start, and keep an agent running",
		Long: `Write deployx-restore.service, which shows every tree again at boot before
services start, and start it. With --url or --agent also write
deployx-agent.service, which keeps an agent running. It lets old snapshots expire;
without it deployx-gc.timer does, which has deployx gc --all run every hour. What is
there already stays, what has changed is written again; services that run are not
restarted.

The agent gets the flags of deployx agent that stand here (deployx agent --help
lists them), or with --agent alone those in the file of --config, by default
/etc/deployx/agent.yaml. DEPLOYX_ variables are not handed on, but for
DEPLOYX_STATE. docs/operations.md explains the units.

  deployx install
  deployx install --url https://backend:8000 --token-file /etc/deployx/token --tree /srv/app
  deployx install --agent --config /etc/deployx/agent.yaml
  deployx install --dry-run

Exit status: 0; 1 refused or failed; 2 usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.install(c, f) },
	}
	of.register(c)
	a.session.register(c, true)
	c.Flags().VisitAll(func(g *pflag.Flag) {
		g.Hidden = g.Name != "url" && g.Name != "config" && g.Name != "token-file"
	})
	c.Flags().BoolVar(&f.agent, "agent", false, "install the agent with the settings of --config")
	c.Flags().BoolVar(&f.dry, "dry-run", false, "print the units and do nothing")
	c.Flags().BoolVar(&f.noStart, "no-start", false, "start nothing now")
	c.Flags().StringVar(&f.binary, "binary", "", "the deployx that the units call (default: this one)")
	f.register(c)
	return c
}

// register adds the flags that uninstall has too.
func (f *installFlags) register(c *cobra.Command) {
	c.Flags().StringVar(&f.root, "root", "", "work on the system below this `directory`, which does not run")
	c.Flags().StringVar(&f.unitDir, "unit-dir", "", "the `directory` for the units; systemd is not told (default /etc/systemd/system)")
}

func (a *app) install(c *cobra.Command, f *installFlags) error {
	units, err := a.units(c, f)
	if err != nil {
		return err
	}
	if f.dry {
		for _, u := range units {
			if _, err := fmt.Fprintf(a.out, "# %s\n%s\n", filepath.Join(a.unitDir(f), u.name), u.text); err != nil {
				return err
			}
		}
		return nil
	}
	s := systemd{dir: a.unitDir(f), live: f.root == "" && f.unitDir == ""}
	if err := s.need("install", withoutSystemd); err != nil {
		return err
	}
	var stale []string
	for _, u := range units {
		changed, err := s.write(u)
		if err != nil {
			return err
		}
		a.say("deployx: %s %s", filepath.Join(s.dir, u.name), changed)
		if changed == rewritten {
			stale = append(stale, u.name)
		}
	}
	if err := a.replaceGC(s, units); err != nil {
		return err
	}
	if err := s.reload(); err != nil || f.noStart || !s.live {
		return err
	}
	return a.startUnits(s, units, stale)
}

const withoutSystemd = "let what boots it run deployx restore --all, after local file systems are mounted and before services start, " +
	"and a supervisor keep deployx agent running, or cron call deployx gc --all every hour; --root DIR works on a system that does not run"

// replaceGC takes the timer of gc away where an agent does its work from now on.
func (a *app) replaceGC(s systemd, units []unit) error {
	if !slices.ContainsFunc(units, func(u unit) bool { return u.name == agentUnit }) {
		return nil
	}
	for _, u := range unitsOfInstall() {
		if _, err := s.owned(u.name); err != nil || u.name != gcTimer && u.name != gcUnit {
			continue
		}
		if _, err := a.takeAway(s, u); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) startUnits(s systemd, units []unit, stale []string) error {
	for _, u := range units {
		if u.wantedBy == "" { // its timer does
			continue
		}
		if err := s.call("start", u.name); err != nil {
			return fmt.Errorf("%w; systemctl status %s tells why", err, u.name)
		}
	}
	for _, name := range stale {
		if name == agentUnit {
			a.say("deployx: the agent runs on with its old settings; when it has nothing to do: systemctl restart %s", name)
		}
	}
	return nil
}

func (a *app) unitDir(f *installFlags) string {
	dir := "/etc/systemd/system"
	if f.unitDir != "" {
		dir = a.abs(f.unitDir)
	}
	if f.root != "" {
		dir = filepath.Join(a.abs(f.root), dir)
	}
	return dir
}

// units makes the units that the command line asks for.
func (a *app) units(c *cobra.Command, f *installFlags) ([]unit, error) {
	binary, err := a.installed(f)
	if err != nil {
		return nil, err
	}
	mounts, err := a.mountsToWaitFor(f)
	if err != nil {
		return nil, err
	}
	units := []unit{newRestoreUnit(binary, a.stateDir(), mounts)}
	given := a.agentArgs(c)
	if !f.agent && !c.Flags().Changed("url") {
		for _, g := range given {
			if name, _, _ := strings.Cut(g, "="); name != "--driver" { // a flag of every command
				return nil, usageError{fmt.Errorf("%s is a setting of the agent: add --url, or --agent if --config names the backend", name)}
			}
		}
		if _, err := (systemd{dir: a.unitDir(f)}).owned(agentUnit); err == nil { // it does that already
			return units, nil
		}
		return append(units, newGCUnits(binary, a.stateDir())...), nil
	}
	if f.agent && !c.Flags().Changed("config") && !c.Flags().Changed("url") {
		given = append(given, "--config=/etc/deployx/agent.yaml")
	}
	stop, err := checkAgent(given, f.root)
	if err != nil {
		return nil, err
	}
	args := append(stateFlag(a.stateDir()), given...)
	return append(units, newAgentUnit(binary, args, stop)), nil
}

// installed is the program that the units call.
func (a *app) installed(f *installFlags) (string, error) {
	path := f.binary
	switch {
	case path != "":
		path = a.abs(path)
	case f.root != "":
		path = "/usr/local/bin/deployx"
	default:
		var err error
		if path, err = os.Executable(); err != nil {
			return "", err
		}
	}
	if f.root == "" {
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			return "", &snapshot.Error{Code: snapshot.CodeBadRequest, Msg: fmt.Sprintf("%q is not a program", path), Hint: "name the installed deployx with --binary"}
		}
		if t, err := snapshot.NewState(a.stateDir()).Holding(a.resolved(path)); err == nil {
			return "", &snapshot.Error{
				Code: snapshot.CodeBadRequest, Msg: fmt.Sprintf("%q lies in the tree %q, which it has to show", path, t.Path),
				Hint: "install deployx elsewhere, as sudo make install does, and name it with --binary",
			}
		}
	}
	if strings.ContainsFunc(path, func(r rune) bool { return needsQuotes(r) || r == '$' || r == '%' }) {
		return "", &snapshot.Error{Code: snapshot.CodeBadRequest, Msg: fmt.Sprintf("systemd takes no program of the name %q", path), Hint: "link it from /usr/local/bin, and name that with --binary"}
	}
	return path, nil
}

// mountsToWaitFor are units of local mounts that known trees are on, so that
// those are waited for that fstab calls nofail.
func (a *app) mountsToWaitFor(f *installFlags) (units []string, err error) {
	if f.root != "" {
		return nil, nil
	}
	trees, err := snapshot.NewState(a.stateDir()).Trees()
	if err != nil {
		return nil, err
	}
	local, remote, err := treeMounts(trees)
	for _, p := range local {
		units = append(units, mountUnit(p))
	}
	for _, p := range remote {
		a.say("deployx: warning: %q needs the network, which there is not yet when trees are shown at boot: trees on it are shown by the agent or by the next command; services that use them must come after those", p)
	}
	return units, err
}

// agentArgs are the agent's settings that were given to install, with every path
// absolute: the agent stands in /.
func (a *app) agentArgs(c *cobra.Command) (args []string) {
	theirs := (&app{}).agentCmd().Flags() // not of a: to register flags sets defaults
	c.Flags().Visit(func(g *pflag.Flag) {
		if theirs.Lookup(g.Name) == nil && g.Name != "tree" && g.Name != "driver" {
			return
		}
		values := []string{g.Value.String()}
		if s, ok := g.Value.(pflag.SliceValue); ok {
			values = s.GetSlice()
		}
		for _, v := range values {
			if isPath(g.Name) && v != "" {
				v = a.abs(v)
			}
			args = append(args, "--"+g.Name+"="+v)
		}
	})
	return args
}

// isPath tells whether a setting of the agent names a file or directory here.
func isPath(flag string) bool {
	switch flag {
	case "tree", "also-tree", "allow-tree", "config", "token-file", "header-file", "ca", "cert", "key", "require-signature":
		return true
	}
	return false
}

// checkAgent refuses settings with which the agent would not start, and tells
// how long it may take to stop with these.
func checkAgent(args []string, root string) (stop time.Duration, err error) {
	b := &app{cwd: "/"}
	c, rest, err := b.root().Find(append([]string{"agent"}, args...))
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err != nil {
		return 0, usageError{err}
	}
	fl := c.Flags()
	file := filepath.Join(root, fl.Lookup("config").Value.String())
	if !fl.Changed("config") {
		file = ""
	}
	if err := configureFrom(c, file, func(string) (string, bool) { return "", false }); err != nil {
		return 0, usageError{err}
	}
	o := agent.Options{URL: fl.Lookup("url").Value.String(), TokenFile: fl.Lookup("token-file").Value.String()}
	if o.TokenFile != "" {
		o.TokenFile = filepath.Join(root, o.TokenFile)
	}
	plain, e1 := fl.GetBool("allow-plaintext")
	grace, e2 := fl.GetDuration("grace")
	flush, e3 := fl.GetDuration("flush-timeout")
	namespace, e4 := fl.GetString("namespace")
	transports, e5 := fl.GetStringSlice("transport")
	o.AllowPlaintext, o.Namespace, o.Transports = plain, namespace, transports
	if err := errors.Join(e1, e2, e3, e4, e5); err != nil {
		return 0, err
	}
	if err := o.CheckBackend(); err != nil {
		return 0, usageError{err}
	}
	return grace + flush + stopMargin, o.Check()
}

// stopMargin is for what the agent does after its grace: a shell takes 5 s to
// interrupt, end and kill a command, and its layer is put on disk.
const stopMargin = 30 * time.Second
