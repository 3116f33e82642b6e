package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// Forgotten tells what Forget did.
type Forgotten struct {
	Committed Committed
	Undone    int      // rolled-back commands that are gone for good
	Removed   []string // files and directories
}

// forgottenSuffix marks a tree's files that are being removed. The tree's entry
// in the state directory goes last, so that a ForgetTree that was cut off can be
// called again.
const forgottenSuffix = ".forgotten"

// ForgetOptions refine ForgetTree.
type ForgetOptions struct {
	Commit   bool // commit everything first
	Force    bool // snapshots that are kept (Keep) go, too
	Progress func(snapshot.Progress)
}

// ForgetTree unmounts the tree and removes everything that is kept of it. It refuses
// while commands could still be rolled back, unless they are to be committed first,
// and where a snapshot that is kept would go, rolled back or not. What commands and
// others did stays in the directory. The session cannot be used afterwards.
func (s *Session) ForgetTree(ctx context.Context, o ForgetOptions) (f Forgotten, err error) {
	err = s.exclusively(ctx, func() error {
		s.upkeep.end(upkeepGrace)
		if o.Commit {
			if err := s.forgetKept(o.Force); err != nil {
				return err
			}
			if err := s.commitThrough(ctx, CommitOptions{Force: o.Force, Progress: o.Progress}, &f.Committed); err != nil {
				return err
			}
		}
		if err := s.settle(ctx); err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
		if err := s.refuseForget(ctx, o.Commit); err != nil {
			return err
		}
		if err := s.forgetKept(o.Force); err != nil {
			return err
		}
		f.Undone = s.undone()
		s.dropShell()
		s.forgotten = true
		f.Removed, err = s.removeStore()
		return err
	})
	return f, err
}

// forgetKept refuses to forget a tree with snapshots that are kept.
func (s *Session) forgetKept(force bool) error {
	ids, err := s.rec.Pinned()
	if err != nil || force || len(ids) == 0 {
		return err
	}
	return keptError(ids[0], "deployx forget --force forgets all the same")
}

// undone counts the commands that a redo could still have brought back.
func (s *Session) undone() (n int) {
	all, err := s.rec.All()
	if err != nil {
		return 0
	}
	for _, id := range all {
		if e, err := s.rec.Snapshot(id); err == nil && e.Kind == snapshot.KindCommand && !s.rec.Expired(id) {
			n++
		}
	}
	return n
}

// refuseForget names what stands in the way: what was set aside, commands that can be
// rolled back, changes that others made to the open layer, processes that hold the
// mount.
func (s *Session) refuseForget(ctx context.Context, commit bool) error {
	aside, err := s.aside()
	if err != nil {
		return err
	}
	if len(aside) > 0 {
		return &snapshot.Error{
			Code: snapshot.CodeBadRequest, Msg: fmt.Sprintf("%q has what others wrote while a view of %q had to be taken back, and no other has it", aside[0], s.o.Tree.Path),
			Hint: "take from there what you need and remove it (rm -r), then call deployx forget again",
		}
	}
	h := s.rec.Head()
	v, err := s.rec.View(h)
	if err != nil {
		return err
	}
	if h.Open == "" && len(v.Layers) == 0 && h.Committing == "" {
		return nil
	}
	held, err := s.holdersAnywhere(ctx)
	if err != nil {
		return err
	}
	e := &snapshot.Error{Code: snapshot.CodeBadRequest, Hint: "deployx commit makes them part of the directory for good, deployx rollback --all undoes them; or deployx forget --commit"}
	switch n, err := s.applied(); {
	case err != nil:
		return err
	case len(held) > 0 && (commit || n == 0):
		e.Code, e.Msg, e.Holders = snapshot.CodeTreeBusy, fmt.Sprintf("%q is held by running processes", s.o.Tree.Path), held
		e.Hint = "stop them, or reboot, and call deployx forget again"
		if commit {
			e.Hint = "what was done is committed, as far as they allow: stop them, or reboot, and call deployx forget --commit again"
		}
	case n > 0:
		e.Msg = fmt.Sprintf("%q has snapshots that are not committed: %d", s.o.Tree.Path, n)
	case h.Floor != nil && h.Floor.Layer != "":
		e.Msg = fmt.Sprintf("%q stands on a layer with what expired snapshots did, which is not committed", s.o.Tree.Path)
	default:
		e.Msg = fmt.Sprintf("others have changed %q, and that is not committed", s.o.Tree.Path)
	}
	return e
}

func (s *Session) applied() (n int, err error) {
	for _, err := range s.rec.Chain(s.rec.Head().Snapshot) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// removeStore removes the tree's files and then its entry. Every step can be
// repeated.
func (s *Session) removeStore() (removed []string, err error) {
	store := s.o.Tree.Store
	if below, err := mountsIn(store); err != nil || len(below) > 0 {
		return nil, errors.Join(err, orMounted(store, len(below)))
	}
	if err := s.drv.Close(); err != nil { // of work that nobody waited for, on what goes now
		s.o.Warn("upkeep: " + err.Error())
	}
	gone := store + forgottenSuffix
	crash.Point("session.forget.hidden")
	if err := os.RemoveAll(gone); err != nil { // of a forget that was cut off
		return nil, err
	}
	if err := os.Rename(store, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	crash.Point("session.forget.moved")
	if err := durable.SyncDir(filepath.Dir(store)); err != nil {
		return nil, err
	}
	for _, part := range []string{"layers", "record", "contexts", "output", "reserve", ""} {
		crash.Point("session.forget.removing")
		if err := os.RemoveAll(filepath.Join(gone, part)); err != nil {
			return nil, err
		}
	}
	removed = append(removed, store)
	if dir := filepath.Dir(store); filepath.Base(dir) == ".deployx" && os.Remove(dir) == nil {
		removed = append(removed, dir)
	}
	crash.Point("session.forget.removed")
	more, err := s.o.State.Forget(s.o.Tree.Path)
	return append(removed, more...), err
}

func orMounted(store string, n int) error {
	if n == 0 {
		return nil
	}
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("something is mounted in %q", store),
		Hint: "unmount it (findmnt shows what it is) and try again",
	}
}
