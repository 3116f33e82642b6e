package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"deployx/overlay"
	"deployx/session"
	"deployx/snapshot"
)

func methods(o options) []method {
	try := method{name: "binpash/try -y (no undo after)"}
	if o.try != "" {
		try.run = func(p *place, i int) error { return command(p.tree, o.try, "-y", change(i)) }
	}
	return []method{
		{name: "plain bash (no undo)", run: func(p *place, i int) error { return shell(p.tree, change(i)) }},
		{name: "DeployX, one session", begin: openSession, run: runInSession, undo: undoInSession, end: closeSession},
		{name: "DeployX, deployx run", run: deployxRun, undo: deployxUndo, end: deployxEnd},
		try,
		{name: "cp -a before each", run: copyBefore, undo: renameBack, one: keepOneCopy},
		{name: "rsync --link-dest", begin: firstCopy, run: rsyncBefore, undo: rsyncBack},
		{name: "btrfs subvolume snapshot", fs: "btrfs", run: subvolumeBefore, undo: subvolumeBack},
		{name: "git add -A, git commit", begin: gitInit, run: gitCommit, undo: gitReset},
	}
}

func openSession(p *place) error {
	s, err := newSession(p.image, p.tree)
	p.extra = s
	return err
}

// newSession makes a directory a tree and opens it.
func newSession(img image, tree string) (*session.Session, error) {
	state := snapshot.NewState(img.path("state"))
	t, err := state.Tree(tree)
	if err != nil {
		t = snapshot.Tree{Path: tree, Driver: overlay.Name, Created: time.Now(), Store: session.ChooseStore(tree, state.Dir())}
		err = state.Add(t)
	}
	if err != nil {
		return nil, err
	}
	return session.Open(context.Background(), session.Options{
		State: state, Tree: t,
		OpenDriver: func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
			return overlay.New(overlay.Options{Tree: t.Path, State: t.Store})
		},
	})
}

func runInSession(p *place, i int) error {
	r, err := p.extra.(*session.Session).Run(context.Background(), session.Command{Text: change(i)})
	if err == nil && r.Snapshot.ExitCode != 0 {
		err = fmt.Errorf("exit status %d: %s", r.Snapshot.ExitCode, r.Tail)
	}
	return err
}

func undoInSession(p *place, _ int) error {
	_, err := p.extra.(*session.Session).Rollback(context.Background(), session.Target{Last: 1}, session.RollbackOptions{})
	return err
}

func closeSession(p *place) error {
	s, ok := p.extra.(*session.Session)
	if !ok {
		return nil
	}
	_, err := s.Rollback(context.Background(), session.Target{All: true}, session.RollbackOptions{})
	return errors.Join(err, s.Close())
}

func (p *place) deployx(args ...string) error {
	return command("/", p.o.binary, append([]string{"--state", p.path("state"), "--tree", p.tree}, args...)...)
}

func deployxRun(p *place, i int) error  { return p.deployx("run", change(i)) }
func deployxUndo(p *place, _ int) error { return p.deployx("rollback", "--last", "1") }
func deployxEnd(p *place) error         { return p.deployx("rollback", "--all") }
func (p *place) copy(i int) string      { return p.path(fmt.Sprintf("copy.%d", i)) }
func firstCopy(p *place) error          { return command("", "cp", "-a", p.tree, p.copy(-1)) }
func keepOneCopy(p *place, i int) error { return os.RemoveAll(p.copy(i - 1)) }
func gitCommit(p *place, i int) error {
	return shell(p.tree, change(i)+" && git add -A && git commit -qm "+fmt.Sprint(i))
}
func gitReset(p *place, _ int) error { return shell(p.tree, "git reset -q --hard HEAD~1") }

func copyBefore(p *place, i int) error {
	return shell(p.tree, "cp -a . "+p.copy(i)+" && "+change(i))
}

// renameBack puts the copy in the tree's place.
func renameBack(p *place, i int) error {
	return errors.Join(os.Rename(p.tree, p.copy(i)+".undone"), os.Rename(p.copy(i), p.tree))
}

func rsyncBefore(p *place, i int) error {
	return shell(p.tree, fmt.Sprintf("rsync -a --link-dest=%s ./ %s && %s", p.copy(i-1), p.copy(i), change(i)))
}

func rsyncBack(p *place, i int) error {
	return shell(p.tree, "rsync -a --delete "+p.copy(i)+"/ ./")
}

func subvolumeBefore(p *place, i int) error {
	return shell(p.tree, fmt.Sprintf("btrfs -q subvolume snapshot . %s && %s", p.copy(i), change(i)))
}

func subvolumeBack(p *place, i int) error {
	return shell(p.dir, fmt.Sprintf("mv %[1]s %[2]s.undone && mv %[2]s %[1]s", p.tree, p.copy(i)))
}

func gitInit(p *place) error {
	return shell(p.tree, "git init -q && git config user.email bench@localhost && git config user.name bench && git add -A && git commit -qm base")
}
