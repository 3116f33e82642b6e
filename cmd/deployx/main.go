// Command deployx runs commands in a tree and undoes them exactly.
//
// Rules of its output: what a command prints is passed on untouched; what
// deployx itself has to say goes to stderr, or with --json as objects to
// stdout. An error says what to do next.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// version is set by the linker (see Makefile).
var version = "devel"

// Exit statuses of deployx itself. run and batch end with their command's
// status, and with exitFailed when deployx failed, as env(1) and timeout(1).
const (
	exitRefused = 1
	exitUsage   = 2
	// exitUntold: it was done, but stdout did not take the result.
	exitUntold = 3
	// exitStale: it was undone or done again, but not all that goes on with the old
	// files was restarted.
	exitStale  = 4
	exitFailed = 125
	// exitInterrupted is that of a shell that died of SIGINT: before the command
	// ran, for then it has a status of its own.
	exitInterrupted = 130
)

func main() { os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// Main runs one command line and returns its exit status.
func Main(args []string, in *os.File, out, errw *os.File) int {
	o := &outlet{w: out}
	a := &app{in: in, out: o, err: errw}
	if err := a.stepOut(); err != nil {
		fmt.Fprintln(errw, "deployx:", err) //nolint:errcheck // nowhere to tell
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	defer surviveReaders()()
	cmd := a.root()
	cmd.SetArgs(args)
	cmd.SetIn(in)
	cmd.SetOut(out)
	cmd.SetErr(errw)
	ran, err := cmd.ExecuteContextC(ctx)
	a.tellFailure(ran, err)
	if err := o.lost(); err != nil && runs(ran) {
		fmt.Fprintln(errw, "deployx: what was printed is lost in part:", err) //nolint:errcheck // nowhere to tell
	}
	if code := a.status(ran, err); code != exitFailed && code != exitRefused || ctx.Err() == nil {
		return code
	}
	return exitInterrupted
}

// surviveReaders keeps us alive when the reader of our output goes away: a
// command must be recorded to its end. The Go runtime would die of SIGPIPE on a
// write to stdout (os/signal); to ignore the signal would be handed down to
// every command, so it is caught.
func surviveReaders() (stop func()) {
	c := make(chan os.Signal, 1)
	signal.Notify(c, unix.SIGPIPE)
	return func() { signal.Stop(c) }
}

// exitStatus is an error that carries nothing but an exit status.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

type usageError struct{ error }

// listings are the commands that do nothing but tell: one whose reader has gone has
// nobody to tell.
var listings = []string{"log", "show", "diff", "status", "doctor"}

func (a *app) status(ran *cobra.Command, err error) int {
	var code exitStatus
	var usage usageError
	var quiet untold
	var stale stillStale
	switch {
	case err == nil:
		return 0
	case errors.As(err, &code):
		return int(code)
	case errors.Is(err, unix.EPIPE) && ran != nil && slices.Contains(listings, ran.Name()): // deployx log | head
		return 128 + int(unix.SIGPIPE)
	}
	a.complain(ran, err)
	switch {
	case runs(ran):
		return exitFailed
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &quiet):
		return exitUntold
	case errors.As(err, &stale):
		return exitStale
	}
	return exitRefused
}

// runs tells whether it was a command that ends as what it ran.
func runs(c *cobra.Command) bool { return c != nil && (c.Name() == "run" || c.Name() == "batch") }

// complain tells a person what went wrong.
func (a *app) complain(ran *cobra.Command, err error) {
	fmt.Fprintf(a.err, "deployx: %v\n", err) //nolint:errcheck // nowhere to tell
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		fmt.Fprintln(a.err, "deployx needs root: try sudo") //nolint:errcheck // nowhere to tell
	}
	var usage usageError
	if errors.As(err, &usage) && ran != nil {
		fmt.Fprintf(a.err, "usage: %s\n", ran.UseLine()) //nolint:errcheck // nowhere to tell
	}
}

// app is one call of deployx.
type app struct {
	in       *os.File
	out, err io.Writer
	cwd      string // where we were called; we ourselves stand in /

	tree, state, driver string
	json, quiet         bool
	session             sessionFlags
	sizes               bool // of status
	tellsRecovery       bool // the command does so itself
	forgets             bool // what is gone is in nobody's way
}

// stepOut leaves the current directory, which would otherwise hold the tree.
func (a *app) stepOut() error {
	cwd, err := os.Getwd()
	if pwd := os.Getenv("PWD"); (err != nil || strings.HasPrefix(cwd, "(")) && filepath.IsAbs(pwd) {
		cwd, err = filepath.Clean(pwd), nil
	}
	if err != nil {
		cwd = "/"
	}
	a.cwd = cwd
	return os.Chdir("/")
}

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use: "deployx", Short: "Run any command in a directory tree; undo it exactly, in milliseconds",
		Long: `Run any command in a directory tree; undo it exactly, in milliseconds.

  deployx run --tree /srv/app -- 'git pull && npm ci'
  deployx log                 # what was done
  deployx diff ID             # what a command changed
  deployx rollback ID         # put the tree back to what it was before it
  deployx redo                # take the rollback back
  deployx commit              # keep it all for good: a plain directory again

Exit status: 0; 1 refused or failed, and nothing was changed; 2 usage; 3 done, but
stdout did not take the result; 4 done, but --restart-stale did not restart all.
run, batch and shell differ: see their help.`,
		SilenceErrors: true, SilenceUsage: true, SuggestionsMinimumDistance: 2,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		RunE:              noCommand,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return notEmpty(c) },
	}
	f := c.PersistentFlags()
	f.StringVar(&a.tree, "tree", "", "the `directory` to work on (default: the known tree that holds the current directory)")
	f.StringVar(&a.state, "state", defaultState(), "the `directory` that deployx keeps its records in (env DEPLOYX_STATE)")
	f.StringVar(&a.driver, "driver", "auto", "how a new tree is kept: auto, overlay or copy")
	f.BoolVar(&a.json, "json", false, "print JSON on stdout")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing but errors")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c.AddCommand(a.runCmd(), a.batchCmd(), a.shellCmd(), a.logCmd(), a.showCmd(), a.diffCmd(), a.rollbackCmd(), a.redoCmd(),
		a.commitCmd(), a.forgetCmd(), a.gcCmd(), a.keepCmd(), a.statusCmd(), a.doctorCmd(), a.versionCmd(), a.agentCmd(), a.installCmd(), a.uninstallCmd(), a.restoreCmd(), a.completionCmd(), a.lateOutputCmd())
	helpOnly(c)
	a.completeFlags(c)
	return c
}

// helpOnly makes help refuse what there is no help about.
func helpOnly(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	help, _, err := root.Find([]string{"help"})
	if err != nil {
		return
	}
	help.Run, help.RunE = nil, func(_ *cobra.Command, args []string) error {
		c, rest, err := root.Find(args)
		if err != nil || c == root && len(rest) > 0 {
			return noCommand(root, args)
		}
		c.InitDefaultHelpFlag()
		return c.Help()
	}
}

// notEmpty refuses an empty value where a default would go further than what was
// meant: commit would commit everything, forget the tree of the current directory.
func notEmpty(c *cobra.Command) error {
	for _, name := range []string{"tree", "state", "through"} {
		if f := c.Flags().Lookup(name); f != nil && f.Changed && f.Value.String() == "" {
			return usageError{fmt.Errorf("--%s is empty: give it a value or leave it out", name)}
		}
	}
	return nil
}

// noCommand serves a command line that names none, or one that we do not have.
func noCommand(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	msg := fmt.Sprintf("there is no command %q", args[0])
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		msg += "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{errors.New(msg + " (deployx --help lists them)")}
}

// standardState is the state directory that is meant when none is named.
const standardState = "/var/lib/deployx"

func defaultState() string {
	if d := os.Getenv("DEPLOYX_STATE"); d != "" {
		return d
	}
	return standardState
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: noArgs,
		Long: `Print the version of deployx and that of the records it reads and writes.

Exit status: 0; 2 usage.`,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.encode(map[string]any{"version": version, "record_version": snapshot.Version})
			}
			_, err := fmt.Fprintf(a.out, "deployx %s (record version %d)\n", version, snapshot.Version)
			return err
		},
	}
}

func noArgs(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("%s takes no arguments, got %q", c.Name(), args[0])}
	}
	return nil
}

// say tells a person something, unless --quiet.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, format+"\n", args...) //nolint:errcheck // nowhere to tell
	}
}
