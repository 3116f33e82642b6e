// Package durable writes small files so that a power cut leaves the old or the
// new one, never a mixture.
//
// It is not for files that grow or are read while they are being written.
package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
)

// Write replaces path by data: it writes a temporary file beside it, syncs it,
// renames it over path and syncs the directory (rename(2) replaces atomically;
// only fsync of the directory makes the new name last, open(2) NOTES). On error
// path is as it was, unless IsPublished. The mode of a new file is 0600.
func Write(path string, data []byte) error {
	if err := Stage(path, data, true); err != nil {
		return err
	}
	return Publish(path)
}

// Replace writes path whole or not at all, as a reader sees it, and syncs nothing:
// a power cut may leave the old file, the new one, or one without its bytes.
func Replace(path string, data []byte) error {
	if err := Stage(path, data, false); err != nil {
		return err
	}
	err := os.Rename(path+".tmp", path)
	if err != nil {
		err = errors.Join(err, ignoreGone(os.Remove(path+".tmp")))
	}
	return err
}

// Stage writes the temporary file that Publish will rename, and syncs it when
// sync is set. A caller that syncs the whole filesystem before it calls
// Publish passes false and saves one flush.
func Stage(path string, data []byte, sync bool) (err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, ignoreGone(os.Remove(tmp)))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	if sync {
		if err := f.Sync(); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// errPublished marks an error after the rename.
var errPublished = errors.New("renamed, not synced")

// IsPublished tells whether the file that Write or Publish failed with does
// stand at its path: only the sync of the directory failed, so that a power cut
// may bring the old one back.
func IsPublished(err error) bool { return errors.Is(err, errPublished) }

// Publish renames the staged file over path and syncs the directory. On error
// path is as it was, unless IsPublished says otherwise.
func Publish(path string) error {
	crash.Point("durable.staged." + filepath.Base(path))
	if err := os.Rename(path+".tmp", path); err != nil {
		return errors.Join(err, ignoreGone(os.Remove(path+".tmp")))
	}
	crash.Point("durable.renamed." + filepath.Base(path))
	if err := SyncDir(filepath.Dir(path)); err != nil {
		return errors.Join(errPublished, err)
	}
	return nil
}

// SyncFiles makes the contents and attributes of files last.
func SyncFiles(names ...string) error {
	for _, name := range names {
		f, err := os.Open(name)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SyncDir makes the names in dir last.
//
// That fsync succeeded is not enough. When a journal has failed, or the filesystem
// shut down, what was to be written is gone, and one who asks after that is told
// that there is nothing to write: ext4, if the failure met another's sync
// (jbd2_journal_force_commit), xfs in any case (xfs_dir_fsync; Linux 6.18). But
// neither takes a change then, so one is made.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sync %s: %w", dir, err), d.Close())
	}
	return errors.Join(takesChanges(d), d.Close())
}

// takesChanges fails where the filesystem of f has failed: it sets f's flags to what
// they are. A new time would not tell, whose errors ext4 drops (ext4_dirty_inode).
// Filesystems without flags are not asked.
func takesChanges(f *os.File) error {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
	}
	if err != nil && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return &fs.PathError{Op: "change after sync", Path: f.Name(), Err: err}
	}
	return nil
}

// SyncData makes what was written to f last, as fdatasync(2), with the doubt of
// SyncDir.
func SyncData(f *os.File) error {
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return takesChanges(f)
}

// SyncFilesystem writes everything dirty on the filesystem that holds dir
// (syncfs(2)).
func SyncFilesystem(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return errors.Join(&fs.PathError{Op: "syncfs", Path: dir, Err: err}, d.Close())
	}
	return d.Close()
}

// StageSpare writes data to the spare of path, the file that Exchange will put in
// its place. The spare is the file that was replaced before, overwritten where it
// lies: on ext4 that takes a third of the time of a new file and the removal of
// an old one. The caller pads data to a length that seldom changes, and makes it
// last.
func StageSpare(path string, data []byte) (err error) {
	f, err := os.OpenFile(Spare(path), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if _, err := f.WriteAt(data, 0); err != nil {
		return err
	}
	if fi.Size() > int64(len(data)) {
		return f.Truncate(int64(len(data)))
	}
	return nil
}

// Exchange replaces path by its spare, atomically: what path was is the spare
// then (renameat2(2), RENAME_EXCHANGE), or gone where the filesystem cannot
// exchange. On error path is as it was. It lasts once the directory is synced;
// until then the spare may be path on disk, and must not be written to.
func Exchange(path string) error {
	crash.Point("durable.staged." + filepath.Base(path))
	err := unix.Renameat2(unix.AT_FDCWD, Spare(path), unix.AT_FDCWD, path, unix.RENAME_EXCHANGE)
	if err != nil { // no path yet, or no exchange here
		err = os.Rename(Spare(path), path)
	}
	crash.Point("durable.renamed." + filepath.Base(path))
	return err
}

// Spare is the file that waits to be exchanged for path.
func Spare(path string) string { return path + ".spare" }

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
