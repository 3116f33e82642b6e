package session

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A store keeps some blocks and inodes back. When a command has filled the disk
// they are given up, so that it can still be recorded and rolled back, which is
// the way out. reserveFiles covers what a command and a rollback make anew.
const (
	reserveFiles = 64
	reserveBytes = 8 << 10 // each
)

func (s *Session) reserveDir() string { return filepath.Join(s.o.Tree.Store, "reserve") }

// reserve makes what is kept back, if it is not there. No command runs without.
func (s *Session) reserve() error {
	if s.reserved {
		return nil
	}
	if err := os.MkdirAll(s.reserveDir(), 0o700); err != nil {
		return s.full(err)
	}
	for i := range reserveFiles {
		if err := keepBack(filepath.Join(s.reserveDir(), fmt.Sprint(i))); err != nil {
			return s.full(err)
		}
	}
	s.reserved = true
	return nil
}

func keepBack(name string) error {
	fi, err := os.Lstat(name)
	if err == nil && fi.Size() == reserveBytes {
		return nil
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes)
	if errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, reserveBytes))
	}
	if err != nil {
		return errors.Join(&fs.PathError{Op: "fallocate", Path: name, Err: err}, f.Close(), os.Remove(name))
	}
	return f.Close()
}

func (s *Session) full(err error) error {
	if snapshot.CodeOf(err) != snapshot.CodeNoSpace {
		return fmt.Errorf("keep space back: %w", err)
	}
	return &snapshot.Error{
		Code: snapshot.CodeNoSpace, Msg: "the disk is too full to record a command", Err: err,
		Hint: "free some space outside the tree, or roll back what filled it (for that some is kept back) and then deployx gc --keep-for 1s",
	}
}

// sparing runs a step that may be repeated, and again with more of what was
// kept back as long as the disk is full.
func (s *Session) sparing(step func() error) error {
	err := step()
	for snapshot.CodeOf(err) == snapshot.CodeNoSpace && s.spend() {
		err = step()
	}
	return err
}

// dirty asks the driver, which may have to note what it has found. Short tells that
// there was no room to copy all of it.
func (s *Session) dirty(ctx context.Context, v snapshot.View) (dirty, short bool, err error) {
	err = s.sparing(func() (err error) {
		dirty, short, err = s.glance(ctx, v)
		return err
	})
	return dirty, short, err
}

// glance is dirty without what is kept back.
func (s *Session) glance(ctx context.Context, v snapshot.View) (dirty, short bool, err error) {
	dirty, err = s.drv.Dirty(ctx, v)
	n, ok := s.drv.(snapshot.Noter)
	if !ok || snapshot.CodeOf(err) != snapshot.CodeNoSpace {
		return dirty, false, err
	}
	dirty, err = n.Note(ctx, v)
	return dirty, true, err
}

// spend gives some pieces up: as many as a layer takes, for what a failed try
// made is deleted only in the background.
func (s *Session) spend() (some bool) {
	s.reserved = false
	for i, left := 0, reserveFiles/4; i < reserveFiles && left > 0; i++ {
		if os.Remove(filepath.Join(s.reserveDir(), fmt.Sprint(i))) == nil {
			some, left = true, left-1
		}
	}
	return some
}
