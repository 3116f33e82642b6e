package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const metaHelp = `  :undo [N]      undo the newest command, or the newest N (flags as rollback)
  :redo [N]      take the newest undo back, or the newest N
  :log           what was done, newest first (flags as log)
  :diff [ID]     what a command changed, or everything since base (flags as diff)
  :show ID       one command: exit status, changes, the end of its output
  :status        the tree, its layers, who holds it
  :help, :quit`

var metaNames = []string{"undo", "redo", "log", "diff", "show", "status", "help", "quit"}

// metaWord is a colon with a name right after it: a lone colon is the shell's.
var metaWord = regexp.MustCompile(`^\s*:([a-z]+)(\s.*)?$`)

func meta(text string) (name string, args []string, ok bool) {
	m := metaWord.FindStringSubmatch(text)
	if m == nil {
		return "", nil, false
	}
	return m[1], strings.Fields(m[2]), true
}

func (i *interactive) meta(ctx context.Context, name string, args []string) error {
	switch name {
	case "quit", "q", "exit":
		return errQuit
	case "help":
		i.app.printHelp()
		return nil
	case "undo":
		if len(args) == 0 || strings.HasPrefix(args[0], "-") {
			args = append([]string{"1"}, args...)
		}
		if n, err := strconv.Atoi(args[0]); err != nil || n < 1 {
			return fmt.Errorf(":undo takes a number of commands, not %q", args[0])
		}
		return i.subcommand(ctx, append(i.flags("rollback"), append([]string{"--last"}, args...)...))
	case "redo":
		return i.subcommand(ctx, append(i.flags("redo"), args...))
	}
	if !slices.Contains(metaNames, name) {
		return fmt.Errorf("there is no :%s; :help tells what there is", name)
	}
	return i.subcommand(ctx, append([]string{name}, args...))
}

func (a *app) printHelp() { fmt.Fprintln(a.out, metaHelp) } //nolint:errcheck // the next write tells

// flags begins a command line that changes the tree with what we were told.
func (i *interactive) flags(name string) []string {
	f := i.app.session
	return []string{name, "--on-pinned", f.onPinned, "--wait", f.wait.String()}
}

// subcommand runs another of our commands on the tree. It opens a session of its
// own: the one here holds the tree only while a command runs.
func (i *interactive) subcommand(ctx context.Context, args []string) error {
	sub := *i.app
	root := sub.root()
	root.SetOut(sub.out)
	root.SetErr(sub.err)
	root.SetArgs(append(args, "--tree", i.tree.Path, "--state", i.app.stateDir(), "--quiet="+strconv.FormatBool(i.app.quiet)))
	_, err := root.ExecuteContextC(ctx)
	var status exitStatus
	if errors.As(err, &status) {
		return nil
	}
	return err
}
