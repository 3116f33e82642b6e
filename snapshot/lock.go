package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Lock is the right to change one tree and its record. The kernel gives it
// back when the process ends, however it ends (flock(2)).
type Lock struct{ f *os.File }

// TryLock takes the lock on path, a file that is made if need be. If another
// process has it, the error is CodeTreeBusy with that process named.
//
// A file that was removed or moved while it was being locked is no lock: then
// the one that is there now is tried, or the error is fs.ErrNotExist if the
// directory is gone.
func TryLock(path string) (*Lock, error) {
	for {
		l, err := tryLock(path)
		if err != nil || l.stands(path) {
			return l, err
		}
		if err := l.Unlock(); err != nil {
			return nil, err
		}
	}
}

// stands tells whether the locked file is still the one at path.
func (l *Lock) stands(path string) bool {
	a, err := l.f.Stat()
	b, e := os.Lstat(path)
	return err == nil && e == nil && os.SameFile(a, b)
}

func tryLock(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		err = &Error{
			Code: CodeUnsupported, Msg: "nothing can be recorded", Err: err,
			Hint: "make it writable (mount -o remount,rw); nothing was changed, and deployx log, status and diff still tell",
		}
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &Lock{f}, sign(f)
	}
	holder := readHolder(path)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = &Error{
			Code: CodeTreeBusy, Msg: "the tree is held by another deployx", Holders: holder,
			Hint: "wait for it to end, or stop it",
		}
	} else {
		err = &fs.PathError{Op: "flock", Path: path, Err: err}
	}
	return nil, errors.Join(err, f.Close())
}

// WaitLock takes the lock on path, waiting for it as long as ctx lasts. It
// calls waiting once, with the error that names the holder, if it has to wait.
// When ctx ends first, that error is returned.
func WaitLock(ctx context.Context, path string, waiting func(error)) (*Lock, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		l, err := TryLock(path)
		if err == nil || CodeOf(err) != CodeTreeBusy {
			return l, err
		}
		if pause >= 32*time.Millisecond && waiting != nil {
			waiting(err)
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// Locked tells whether a process has the lock on path. It asks by a shared lock that
// it gives back at once, so it is for those who see that somebody should have it.
func Locked(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // read only
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// Unlock gives the lock back.
func (l *Lock) Unlock() error { return l.f.Close() }

// sign leaves our pid for those who wait. A reader may see it torn or stale:
// it is for people.
func sign(f *os.File) error {
	pid := fmt.Appendf(nil, "%-10d\n", os.Getpid())
	was := make([]byte, len(pid))
	if n, _ := f.ReadAt(was, 0); n == len(pid) && bytes.Equal(was, pid) {
		return nil // nothing for the next sync to write
	}
	_, err := f.WriteAt(pid, 0)
	return err
}

func readHolder(path string) []Holder {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err != nil {
		return nil
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return nil
	}
	return []Holder{{PID: pid, Name: strings.TrimSpace(string(comm)), How: "holds the lock of the tree"}}
}
