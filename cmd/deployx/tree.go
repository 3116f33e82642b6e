package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"deployx/fallback"
	"deployx/overlay"
	"deployx/session"
	"deployx/shell"
	"deployx/snapshot"
)

// sessionFlags are the flags of the commands that change a tree.
type sessionFlags struct {
	onPinned, durability string
	onInterrupted        string
	shell, user          string
	env                  []string
	wait                 time.Duration
	unasked              bool // see forUpkeep
	maxBytes             boundFlag
	exclude              []string
	minFree              freeFlag
	keepLast             int
	keepBytes            sizeFlag
}

func (f *sessionFlags) register(c *cobra.Command, runs bool) {
	fl := c.Flags()
	fl.StringVar(&f.onPinned, "on-pinned", "seal", "when a running process holds the tree: seal, share, refuse or stop")
	limitVar(fl, &f.wait, "wait", "how long to wait for another deployx on this tree (0, the default: for ever)")
	if !runs {
		return
	}
	fl.StringVar(&f.onInterrupted, "on-interrupted", "keep", "when a crash cut the last command off: keep what it did, or rollback")
	f.minFree = freeFlag(defaultFree())
	fl.Var(&f.minFree, "min-free", "refuse a command when less than this is free where the layers are (env DEPLOYX_MIN_FREE)")
	fl.StringVar(&f.durability, "durability", "full", "full: on disk before it is reported; fast: a power cut may lose it")
	fl.StringVar(&f.shell, "shell", "", "the `shell` to use (default bash)")
	fl.StringVar(&f.user, "user", "", "run commands as this `user`")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "set `K=V` for the commands of this call; K alone passes ours on")
	fl.Var(&f.maxBytes, boundName(c), "copy driver: refuse a tree larger than this (0: any)")
	fl.StringArrayVar(&f.exclude, "exclude", nil, "copy driver: leave paths that match this `pattern` alone")
	if boundName(c) != "max-bytes" {
		countVar(fl, &f.keepLast, "keep-last", "", "let snapshots go that are not among this many newest")
		fl.Var(&f.keepBytes, "max-bytes", "let the oldest snapshots of a tree go while all of them take more than this")
	}
}

// boundName is the flag that bounds what the copy driver keeps. The agent, and
// install for it, bounds what all snapshots of a tree may take by --max-bytes.
func boundName(c *cobra.Command) string {
	if c.Name() == "agent" || c.Name() == "install" {
		return "copy-max-bytes"
	}
	return "max-bytes"
}

// defaultFree is that of DEPLOYX_MIN_FREE, else 5 %. What cannot be is told by
// open.
func defaultFree() session.MinFree {
	f := freeFlag{Percent: 5}
	if s := os.Getenv("DEPLOYX_MIN_FREE"); s != "" {
		if err := f.Set(s); err != nil {
			return session.MinFree{Percent: 5}
		}
	}
	return session.MinFree(f)
}

// stateDir is the absolute path of the state directory.
func (a *app) stateDir() string { return a.abs(a.state) }

// abs makes a path absolute from where we were called.
func (a *app) abs(path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(a.cwd, path)
}

// known finds the tree that the flags or the current directory name.
func (a *app) known() (snapshot.Tree, error) {
	st := snapshot.NewState(a.stateDir())
	if a.tree == "" {
		return st.Holding(a.resolved(a.cwd))
	}
	return st.Tree(a.resolved(a.abs(a.tree)))
}

// resolved follows symbolic links as far as the path exists.
func (a *app) resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

// knownOrNew is known for commands that make a directory a tree.
func (a *app) knownOrNew(ctx context.Context) (snapshot.Tree, error) {
	t, err := a.known()
	if snapshot.CodeOf(err) != snapshot.CodeNotFound || a.tree == "" {
		return t, err
	}
	return a.add(ctx, a.abs(a.tree))
}

// add makes a directory a tree, after everything that speaks against it has
// been looked at. Of several deployx that do so at once, one does it.
func (a *app) add(ctx context.Context, path string) (t snapshot.Tree, err error) {
	if _, err := session.CheckTree(path, a.stateDir()); err != nil {
		if t, known := a.known(); known == nil { // since we looked last
			return t, nil
		}
		return t, err
	}
	if err := os.MkdirAll(a.stateDir(), 0o700); err != nil {
		return t, fmt.Errorf("make state directory: %w", err)
	}
	l, err := snapshot.WaitLock(ctx, filepath.Join(a.stateDir(), "lock"), nil)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, l.Unlock()) }()
	if t, err := a.known(); err == nil {
		return t, nil
	}
	return a.addLocked(ctx, path)
}

func (a *app) addLocked(ctx context.Context, path string) (snapshot.Tree, error) {
	real, err := session.CheckTree(path, a.stateDir())
	if err != nil {
		return snapshot.Tree{}, err
	}
	st := snapshot.NewState(a.stateDir())
	t := snapshot.Tree{
		Path: real, Created: time.Now(), Store: session.ChooseStore(real, a.stateDir()),
		MaxBytes: int64(a.session.maxBytes.sizeFlag), Exclude: a.session.exclude,
	}
	if t.Driver, err = a.chooseDriver(t); err != nil {
		return t, err
	}
	// The driver settles what it settles once before others can find the tree.
	if err := os.MkdirAll(t.Store, 0o700); err != nil {
		return t, fmt.Errorf("make store: %w", err)
	}
	d, err := a.openDriver(ctx, t)
	if err == nil {
		err = d.Close()
	}
	if err != nil {
		return t, err
	}
	return t, st.Add(t)
}

// checkDriver refuses a driver that there is not.
func (a *app) checkDriver() error {
	switch a.driver {
	case "copy", "auto", "overlay":
		return nil
	}
	return usageError{fmt.Errorf("--driver is auto, overlay or copy, not %q", a.driver)}
}

// chooseDriver picks the driver for a new tree.
func (a *app) chooseDriver(t snapshot.Tree) (string, error) {
	if err := a.checkDriver(); err != nil || a.driver == "copy" {
		return fallback.Name, err
	}
	ok, why := snapshot.Usable(overlay.Probe(t.Path, t.Store))
	if ok {
		return overlay.Name, nil
	}
	if a.driver == "auto" {
		a.say("deployx: overlay cannot be had here (%s); files will be copied instead", why)
		return fallback.Name, nil
	}
	return "", &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%q cannot have layers: %s", t.Path, why),
		Hint: "deployx doctor tells what was tried; --driver copy works everywhere",
	}
}

// openDriver opens the driver a tree was recorded with.
func (a *app) openDriver(ctx context.Context, t snapshot.Tree) (snapshot.Driver, error) {
	if err := a.checkDriver(); err != nil {
		return nil, err
	}
	if a.driver != "auto" && a.driver != t.Driver {
		return nil, &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%q was recorded with the driver %s, not %s", t.Path, t.Driver, a.driver),
			Hint: "leave --driver out",
		}
	}
	switch t.Driver {
	case overlay.Name:
		return overlay.New(overlay.Options{Tree: t.Path, State: t.Store})
	case fallback.Name:
		return a.openCopy(ctx, t)
	}
	return nil, &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%q was recorded with the driver %q, which this deployx does not have", t.Path, t.Driver)}
}

// open opens a session on t with the flags of the command.
func (a *app) open(ctx context.Context, t snapshot.Tree) (*session.Session, error) {
	f := a.session
	if err := stored(t, lostFiles(t)); err != nil && !a.forgets {
		return nil, err
	}
	switch session.OnPinned(f.onPinned) {
	case session.Seal, session.Share, session.Refuse, session.Stop, "":
	default:
		return nil, usageError{fmt.Errorf("--on-pinned is seal, share, refuse or stop, not %q", f.onPinned)}
	}
	switch f.durability {
	case "full", "fast", "":
	default:
		return nil, usageError{fmt.Errorf("--durability is full or fast, not %q", f.durability)}
	}
	switch session.OnInterrupted(f.onInterrupted) {
	case session.KeepInterrupted, session.RollbackInterrupted, "":
	default:
		return nil, usageError{fmt.Errorf("--on-interrupted is keep or rollback, not %q", f.onInterrupted)}
	}
	if v := os.Getenv("DEPLOYX_MIN_FREE"); v != "" && f.minFree != (freeFlag{}) {
		if err := new(freeFlag).Set(v); err != nil {
			return nil, usageError{fmt.Errorf("DEPLOYX_MIN_FREE: %w", err)}
		}
	}
	waiting := func(err error) { a.say("deployx: waiting: %v", err) }
	if f.unasked {
		waiting = nil
	}
	return session.Open(ctx, session.Options{
		State: snapshot.NewState(a.stateDir()), Tree: t, OpenDriver: a.openDriver,
		Shell:    shell.Options{Program: f.shell, User: f.user, Env: a.environment()},
		OnPinned: session.OnPinned(f.onPinned), Fast: f.durability == "fast", Wait: f.wait,
		OnInterrupted: session.OnInterrupted(f.onInterrupted), Recovered: a.recovered(t),
		MinFree: session.MinFree(f.minFree), KeepLast: f.keepLast, KeepBytes: int64(f.keepBytes),
		Waiting: waiting, Unasked: f.unasked,
		Warn:   func(s string) { a.say("deployx: warning: %s", s) },
		Reader: []string{os.Args[0], lateOutput},
	})
}

// recovered tells what had to be put right, before the command's own outcome.
func (a *app) recovered(t snapshot.Tree) func(session.Recovery) {
	if a.tellsRecovery {
		return nil
	}
	return func(r session.Recovery) {
		switch {
		case r.Unfinished != "" && r.RolledBack:
			a.say("deployx: %s: %s was cut off, and has been rolled back", printable(t.Path), short(r.Unfinished))
		case r.Unfinished != "":
			a.say("deployx: %s: %s was cut off; deployx rollback %s undoes what it had done", printable(t.Path), short(r.Unfinished), short(r.Unfinished))
		}
		if r.Reshown {
			a.say("deployx: %s is shown again", printable(t.Path))
		}
	}
}

// environment is what a fresh shell starts with: the clean one, with our
// terminal and language. A shell with a past keeps its own.
func (a *app) environment() []string {
	return shell.CleanEnv(shell.EnvOptions{Lang: os.Getenv("LANG"), Term: os.Getenv("TERM")})
}

// envName is what a shell takes for a variable's name (POSIX XBD 3.216).
var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// extraEnv is what this call gives to each of its commands, and what wins over
// the shell's own for so long: who --user is, and --env, where K alone stands
// for our own value, if there is one.
func (a *app) extraEnv() (env []string, err error) {
	if u := a.session.user; u != "" {
		if _, err := user.Lookup(u); err != nil {
			return nil, &snapshot.Error{Code: snapshot.CodeBadRequest, Msg: fmt.Sprintf("there is no user %q", u), Hint: "getent passwd lists those that are"}
		}
		for _, e := range shell.CleanEnv(shell.EnvOptions{User: u}) {
			if k, _, _ := strings.Cut(e, "="); k == "HOME" || k == "USER" || k == "LOGNAME" {
				env = append(env, e)
			}
		}
	}
	for _, e := range a.session.env {
		name, _, given := strings.Cut(e, "=")
		if !envName.MatchString(name) {
			return nil, usageError{fmt.Errorf("--env is NAME=VALUE or NAME, not %q", e)}
		}
		if !given {
			value, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			e += "=" + value
		}
		env = append(env, e)
	}
	return env, nil
}

// forUpkeep is for the upkeep of all trees: it waits but a moment for one that
// another deployx works on, and shows none that is not.
func (f *sessionFlags) forUpkeep(wait time.Duration) {
	f.unasked, f.wait, f.onInterrupted = true, wait, ""
}

// there refuses a tree whose directory is gone.
func there(t snapshot.Tree) error {
	if _, err := os.Stat(t.Path); !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return &snapshot.Error{
		Code: snapshot.CodeNotFound, Msg: fmt.Sprintf("the tree %q is gone", t.Path),
		Hint: "make the directory again to reach its snapshots; its record is in " + t.Store,
	}
}

// stored refuses a tree whose files are not there, for they would be made anew.
func stored(t snapshot.Tree, hint string) error {
	if _, err := os.Stat(t.Store); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return &snapshot.Error{Code: snapshot.CodeNotFound, Msg: fmt.Sprintf("its files, in %q, are not there", t.Store), Hint: hint}
}

// lostFiles is what to do about stored's error.
func lostFiles(t snapshot.Tree) string {
	return fmt.Sprintf("mount the file system they are on; if they are lost for good: deployx forget --tree %s, which leaves the directory as it is", quote(t.Path))
}

// with runs f on the session of t and closes it.
func (a *app) with(ctx context.Context, t snapshot.Tree, f func(*session.Session) error) error {
	if err := there(t); err != nil {
		return err
	}
	s, err := a.open(ctx, t)
	if err != nil {
		return err
	}
	err = f(s)
	if e := s.Close(); e != nil && (err == nil || e.Error() != err.Error()) { // told once what is in the way of both
		err = errors.Join(err, e)
	}
	return err
}
