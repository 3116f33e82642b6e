package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"github.com/peterh/liner"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"deployx/session"
	"deployx/snapshot"
)

func (a *app) shellCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "shell",
		Short: "An interactive shell in which every line is a command with its own snapshot",
		Long: `Type commands; each runs in the tree's shell, on your terminal, with a snapshot
just before it. A command may take several lines where bash would ask for more.

` + metaHelp + `

The prompt shows the tree and where the shell is in it, the newest snapshot, and
the last exit status if it is not 0. Tab completes names, arrow keys and ^R
search what was typed before. ^C clears the line, or stops the command; ^D quits.

Exit status: 0; N after "exit N"; 1 refused or failed; 2 usage.`,
		Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.shell(c.Context()) },
	}
	a.session.register(c, true)
	return c
}

func (a *app) shell(ctx context.Context) error {
	if a.json {
		return usageError{errors.New("shell is for people: for events use deployx batch --json -")}
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) || !term.IsTerminal(int(os.Stdout.Fd())) || a.in != os.Stdin {
		return &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: "deployx shell needs a terminal",
			Hint: "to run commands from a pipe or a file use deployx batch - (or batch FILE)",
		}
	}
	t, err := a.toRun(ctx)
	if err != nil {
		return err
	}
	return a.with(ctx, t, func(s *session.Session) error {
		i := &interactive{app: a, tree: t, s: s}
		return i.run(context.WithoutCancel(ctx)) // ^C is for the command
	})
}

// interactive is one person at a terminal.
type interactive struct {
	app  *app
	tree snapshot.Tree
	s    *session.Session
	ln   *liner.State
	dir  string // where the tree's shell is
	last int    // exit status of the last command
}

// errQuit ends the loop.
var errQuit = errors.New("quit")

func (i *interactive) run(ctx context.Context) error {
	// liner reads the terminal only while it asks for a line: what is typed while
	// a command runs is the command's.
	i.ln = liner.NewLiner()
	defer i.ln.Close() //nolint:errcheck // the terminal may be gone
	if err := keysOnly(int(os.Stdin.Fd())); err != nil {
		return err
	}
	i.ln.SetCtrlCAborts(true)
	i.ln.SetMultiLineMode(true)
	i.ln.SetTabCompletionStyle(liner.TabPrints)
	i.ln.SetWordCompleter(i.complete)
	i.loadHistory()
	defer i.signals()()
	i.app.say("deployx: every line is a command with its own snapshot; :help tells more, ^D quits")
	for {
		err := i.step(ctx)
		var status exitStatus
		switch {
		case errors.Is(err, errQuit):
			return nil
		case errors.As(err, &status):
			return status
		case err != nil:
			fmt.Fprintf(i.app.err, "deployx: %v\n", err) //nolint:errcheck // nowhere to tell
		}
	}
}

// keysOnly makes ^C a key like others for good. liner does so only while it asks,
// and what is typed in the moments around that must not end us.
func keysOnly(fd int) error {
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return fmt.Errorf("tcgets: %w", err)
	}
	mode.Lflag &^= unix.ISIG
	return os.NewSyscallError("tcsets", unix.IoctlSetTermios(fd, unix.TCSETS, mode))
}

// signals passes an interrupt that did not come through the command's terminal
// on to the command, and ends everything in order when we are to end.
func (i *interactive) signals() (stop func()) {
	c := make(chan os.Signal, 4)
	signal.Notify(c, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for sig := range c {
			i.s.Interrupt()
			if sig == unix.SIGINT {
				continue
			}
			i.s.Close()  //nolint:errcheck // the next deployx finishes it
			i.ln.Close() //nolint:errcheck // the terminal may be gone
			os.Exit(128 + int(sig.(unix.Signal)))
		}
	}()
	return func() {
		signal.Stop(c)
		close(c)
	}
}

// step asks for one command and runs it.
func (i *interactive) step(ctx context.Context) error {
	var err error
	if i.dir, err = i.s.Dir(); err != nil {
		return fmt.Errorf("read record: %w", errors.Join(err, errQuit))
	}
	text, err := i.read()
	switch {
	case errors.Is(err, liner.ErrPromptAborted):
		return nil
	case errors.Is(err, io.EOF):
		fmt.Fprintln(i.app.out) //nolint:errcheck // the next write tells
		return errQuit
	case err != nil:
		return errors.Join(err, errQuit)
	}
	if name, args, ok := meta(text); ok {
		return i.meta(ctx, name, args)
	}
	if m := leaving.FindStringSubmatch(text); m != nil {
		return i.leave(m[1])
	}
	if idle(text) {
		return nil
	}
	return i.command(ctx, text)
}

// leaving is what a person types to leave a shell. In a longer command exit ends
// the tree's shell, as anywhere.
var leaving = regexp.MustCompile(`^\s*(?:exit|logout)(?:\s+([0-9]{1,3}))?\s*;?\s*$`)

func (i *interactive) leave(status string) error {
	n, err := strconv.Atoi(status)
	if err != nil || n == 0 {
		return errQuit
	}
	return exitStatus(n & 0xff)
}

// idle holds for text without a command.
func idle(text string) bool {
	for line := range strings.Lines(text) {
		if s := strings.TrimSpace(line); s != "" && s[0] != '#' {
			return false
		}
	}
	return true
}

func (i *interactive) command(ctx context.Context, text string) error {
	c := session.Command{Text: text, ID: uuid.NewString()}
	stop, err := i.app.wire(&c, true, i.app.newEvents(c.ID, "", nil))
	if err != nil {
		return err
	}
	r, err := i.s.Run(ctx, c)
	stop() // before anything is said: the terminal was the command's
	if r.Snapshot.ID != "" {
		i.last = r.Snapshot.ExitCode
		i.tell(r)
	}
	return err
}

// tell says what the prompt does not.
func (i *interactive) tell(r session.Result) {
	i.app.circumstances(r)
	if s := r.Snapshot; s.Changes.Total() > 0 || s.Signal != "" {
		i.app.say("deployx: +%d ~%d -%d  %s:undo takes it back", s.Changes.Added, s.Changes.Modified, s.Changes.Deleted, ended(s))
	}
}

// prompt is like "app/sub @01a21569-5cb4 $ ".
func (i *interactive) prompt() string {
	where := filepath.Base(i.tree.Path)
	if rel, err := filepath.Rel(i.tree.Path, i.dir); err == nil && filepath.IsLocal(rel) {
		where = filepath.Join(where, rel)
	} else {
		where += ":" + i.dir
	}
	head := "base"
	if _, rec, err := i.app.recordOf(i.tree); err == nil && rec.Head().Snapshot != "" {
		head = string(rec.Head().Snapshot)[:promptID]
	}
	p := fmt.Sprintf("%s @%s ", oneLine(strings.ToValidUTF8(where, "?"), 60), head)
	if w, _, err := term.GetSize(int(os.Stdout.Fd())); err == nil && len(p) > w/2 {
		p = ""
	}
	if i.last != 0 {
		p += fmt.Sprintf("[%d] ", i.last)
	}
	return p + "$ "
}

// promptID is how much of an id the prompt has room for: milliseconds.
const promptID = 13
