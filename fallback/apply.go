package fallback

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
)

// applier carries a journal out, in either direction. Every step asks first
// whether it was done, so a run that was cut off anywhere can be repeated, and
// turned round.
type applier struct {
	root  beneath
	stage int
	j     *journal
}

// forward makes the tree what it shall be.
func (a *applier) forward() error {
	if err := a.unlock(); err != nil {
		return err
	}
	for i := range a.j.ops {
		crash.Point("fallback.apply.op")
		if err := a.op(&a.j.ops[i], true); err != nil {
			return err
		}
	}
	return a.settle(func(c *change) (was, e *entry) { return c.pre, c.post }, false)
}

// back makes the tree what it was.
func (a *applier) back() error {
	if err := a.unlock(); err != nil {
		return err
	}
	for i := range slices.Backward(a.j.ops) {
		crash.Point("fallback.back.op")
		if err := a.backOp(&a.j.ops[i]); err != nil {
			return err
		}
	}
	// What is another thing now, somebody else has made so meanwhile.
	return a.settle(func(c *change) (was, e *entry) { return c.post, c.pre }, true)
}

// Somebody who moves a directory away while a restore is being taken back gets
// so much time to bring it again.
const (
	backTries = 200
	backWait  = 5 * time.Millisecond
)

// backOp puts an entry back where it came from. While its directory is not
// there it waits; what cannot be put back is kept in the stage.
func (a *applier) backOp(o *op) (err error) {
	for range backTries {
		if err = a.op(o, false); !errors.Is(err, errStale) {
			return err
		}
		time.Sleep(backWait)
	}
	return err
}

// op does one rename, or undoes it, unless that was done.
func (a *applier) op(o *op, forward bool) (err error) {
	done, err := a.done(o)
	if err != nil || done == forward {
		return err
	}
	dir, name, err := a.root.dir(o.path)
	if err != nil {
		return stale(err)
	}
	defer closing(dir, &err)
	switch {
	case o.kind == opSwap:
		err = unix.Renameat2(a.stage, o.name, dir, name, unix.RENAME_EXCHANGE)
	case (o.kind == opBring) == forward:
		err = renameNew(a.stage, o.name, dir, name)
	default:
		err = renameNew(dir, name, a.stage, o.name)
	}
	if err == nil && forward {
		return a.taken(o)
	}
	return stale(sysErrorOrNil("renameat2", o.path, err))
}

// stale marks an error that only somebody else can have caused, by moving
// things in the tree meanwhile.
func stale(err error) error {
	if gone(err) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w: %w", errStale, err)
	}
	return err
}

func (a *applier) done(o *op) (bool, error) {
	st, err := statAt(a.stage, o.name, "stage/"+o.name)
	there := !errors.Is(err, unix.ENOENT)
	if err != nil && there {
		return false, err
	}
	switch o.kind {
	case opBring:
		return !there, nil
	case opTake:
		return there, nil
	}
	if !there {
		return false, fmt.Errorf("restore %q: its stage is gone", o.path)
	}
	return st.ino != o.ino, nil
}

// renameNew replaces nothing. A filesystem without RENAME_NOREPLACE says
// EINVAL; the look before is then all there is.
func renameNew(fromDir int, from string, toDir int, to string) error {
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, err := statAt(toDir, to, to); !errors.Is(err, unix.ENOENT) {
		return errors.Join(unix.EEXIST, err)
	}
	return unix.Renameat(fromDir, from, toDir, to)
}

// unlock takes flags away that forbid a rename, and without root gives us the
// right to write to directories that are ours.
func (a *applier) unlock() error {
	for _, path := range a.j.unlock {
		if err := a.unlockOne(path); err != nil && !gone(err) {
			return err
		}
	}
	return nil
}

func (a *applier) unlockOne(path string) (err error) {
	fd, err := a.root.open(path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer closing(fd, &err)
	st, err := statAt(fd, "", path)
	if err != nil {
		return err
	}
	if st.locked {
		if err := writeFlags(fd, path, 0); err != nil {
			return err
		}
	}
	if st.mode&unix.S_IFMT == unix.S_IFDIR && st.mode&0o300 != 0o300 && isUnprivileged() {
		return sysErrorOrNil("chmod", path, unix.Chmod(procPath(fd), st.mode&0o7777|0o300))
	}
	return nil
}

// settle sets the attributes of what stays in place and of the directories
// that names moved in or out of.
func (a *applier) settle(side func(*change) (was, e *entry), lenient bool) error {
	for i := range a.j.settles {
		c := &a.j.settles[i]
		was, e := side(c)
		if e == nil {
			continue
		}
		crash.Point("fallback.apply.settle")
		err := a.settleOne(c.path, was, e)
		if err != nil && (!lenient || !errors.Is(err, errStale)) {
			return err
		}
	}
	return nil
}

func (a *applier) settleOne(path string, was, e *entry) (err error) {
	fd, err := a.root.open(path, unix.O_PATH)
	if err != nil {
		return stale(err)
	}
	defer closing(fd, &err)
	st, err := statAt(fd, "", path)
	if err != nil {
		return err
	}
	if st.mode&unix.S_IFMT != e.kind() {
		return sysError("restore attributes", path, errStale)
	}
	if e.kind() != unix.S_IFLNK {
		return dress(fd, -1, "", path, was, e)
	}
	dir, name, err := a.root.dir(path)
	if err != nil {
		return err
	}
	defer closing(dir, &err)
	return dress(fd, dir, name, path, was, e)
}

// taken checks that what has just gone out of the tree is what the index
// knows: a write in the last moment must not be lost with it. A rename touches
// nothing that is compared; of a directory it may touch the time.
func (a *applier) taken(o *op) error {
	if o.old == nil {
		return nil
	}
	st, err := statAt(a.stage, o.name, o.path)
	if err != nil {
		return err
	}
	if st.ino != o.old.ino || !o.old.isDir() && (st.mtime != o.old.mtime || st.size != o.old.size) {
		return sysError("restore", o.path, errStale)
	}
	return nil
}
