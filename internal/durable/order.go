package durable

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Ordered tells whether the filesystem that holds dir has one journal for all
// names and attributes, so that a power cut never takes an earlier change of one
// and leaves a later one: ext4 with a journal, and xfs. Others, btrfs for one,
// log what is synced by itself.
func Ordered(dir string) bool {
	var of unix.Stat_t
	var st unix.Statfs_t
	if unix.Stat(dir, &of) != nil || unix.Statfs(dir, &st) != nil {
		return false
	}
	switch st.Type {
	case unix.XFS_SUPER_MAGIC:
		return true
	case unix.EXT4_SUPER_MAGIC:
		name, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(of.Dev), unix.Minor(of.Dev)))
		if err != nil {
			return false
		}
		// The thread that writes the journal, or "<none>" (Linux 5.4, fs/ext4/sysfs.c).
		task, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(name), "journal_task"))
		return err == nil && strings.Trim(string(task), "0123456789\n") == ""
	}
	return false
}

// WriteOut writes the contents of files to the disk, and returns when they are
// there; names and attributes are left to the journal (see Ordered). On ext4 and
// xfs an extent is part of its file before its pages cease to be under writeback,
// and a journal is flushed behind all that has been written, so whatever change
// of a name is made after WriteOut lasts only with the contents. What is not
// a regular file, or is not there, is left out.
func WriteOut(names ...string) error {
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close() //nolint:errcheck // read only
		}
	}()
	for _, name := range names {
		f, err := openRegular(name)
		if err != nil {
			return err
		}
		if f != nil {
			open = append(open, f)
		}
	}
	const begin = unix.SYNC_FILE_RANGE_WRITE
	const end = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for _, flags := range []int{begin, end} {
		for _, f := range open {
			if err := unix.SyncFileRange(int(f.Fd()), 0, 0, flags); err != nil {
				return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
			}
		}
	}
	return nil
}

// openRegular opens a regular file; nil is anything else.
func openRegular(name string) (*os.File, error) {
	var st unix.Stat_t
	err := unix.Lstat(name, &st)
	if errors.Is(err, unix.ENOENT) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
