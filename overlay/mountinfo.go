package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// sourcePrefix marks our mounts in /proc/self/mountinfo; the open layer's id
// follows, which names the view.
const sourcePrefix = "deployx:"

// topSource finds the open layer of the topmost mount on the tree; "" if it is
// not ours. One of ours that has been mounted over by others is an error: what
// the tree shows is then not what the record says.
func topSource(tree string) (snapshot.LayerID, error) {
	top, err := classicMountID(tree)
	if err != nil {
		return "", err
	}
	mounts, err := mountinfo.GetMounts(exactly(tree))
	if err != nil {
		return "", fmt.Errorf("read mountinfo: %w", err)
	}
	covered := false
	for _, m := range mounts {
		id, ours := strings.CutPrefix(m.Source, sourcePrefix)
		ours = ours && m.FSType == "overlay"
		if ours && m.ID == top {
			return snapshot.LayerID(id), nil
		}
		covered = covered || ours
	}
	if covered {
		return "", &snapshot.Error{
			Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("something else has been mounted over %q since deployx showed it", tree),
			Hint: "unmount it (findmnt shows what it is) and try again; nothing was changed",
		}
	}
	return "", nil
}

// exactly filters mounts on one path. The kernel writes space, tab, newline
// and backslash in mountinfo as octal (proc_pid_mountinfo(5)); the library has
// undone that.
func exactly(path string) mountinfo.FilterFunc {
	return func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false }
}

// classicMountID is the id that mountinfo prints, which may be used again after
// an unmount.
func classicMountID(path string) (int, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err != nil {
		return 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return int(st.Mnt_id), nil
}

// checkTree refuses mounts below the tree: a swap would take them from view.
func (d *Driver) checkTree() error {
	below, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint == d.tree || !within(m.Mountpoint, d.tree), false
	})
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	if len(below) == 0 {
		return nil
	}
	e := &snapshot.Error{
		Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%q holds mounts, which deployx cannot carry over yet:", d.tree),
		Hint: "unmount them, or choose a tree without mounts below it",
	}
	for _, m := range below {
		e.Paths = append(e.Paths, m.Mountpoint)
	}
	return e
}

// ownMounts are the mount ids and the device of our superblock on the tree, in
// this namespace.
func (d *Driver) ownMounts() (ids map[uint64]bool, dev uint64, err error) {
	mounts, err := mountinfo.GetMounts(exactly(d.tree))
	if err != nil {
		return nil, 0, fmt.Errorf("read mountinfo: %w", err)
	}
	top, err := classicMountID(d.tree)
	if err != nil {
		return nil, 0, err
	}
	ids = map[uint64]bool{uint64(top): true}
	for _, m := range mounts {
		if m.ID == top {
			return ids, unix.Mkdev(uint32(m.Major), uint32(m.Minor)), nil
		}
	}
	return nil, 0, errors.New("the tree's mount went away")
}
