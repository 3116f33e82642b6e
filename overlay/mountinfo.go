package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// sourcePrefix marks our mounts in /proc/self/mountinfo; the open layer's id
// follows, which names the view.
const sourcePrefix = "deployx:"

// topSource finds the open layer of the topmost mount on the tree; "" if it is
// not ours. One of ours that has been mounted over by others is an error: what
// the tree shows is then not what the record says.
func topSource(tree string) (snapshot.LayerID, error) {
	if id, ok := shownBy(tree); ok {
		return id, nil
	}
	top, err := mounts.ID(tree)
	if err != nil {
		return "", err
	}
	found, err := mountinfo.GetMounts(exactly(tree))
	if err != nil {
		return "", fmt.Errorf("read mountinfo: %w", err)
	}
	covered := false
	for _, m := range found {
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

// shownBy asks the kernel about the one mount that the tree shows, if there is one,
// which takes as long with thousands of others. It is not ok where that is not ours,
// or the kernel is too old to tell.
func shownBy(tree string) (snapshot.LayerID, bool) {
	top, _, err := mounts.UniqueID(tree)
	if err != nil {
		return "", false
	}
	fstype, source, err := mounts.Source(top)
	id, ours := strings.CutPrefix(source, sourcePrefix)
	return snapshot.LayerID(id), err == nil && ours && fstype == "overlay" && mounts.IsRoot(tree)
}

// exactly filters mounts on one path. The kernel writes space, tab, newline
// and backslash in mountinfo as octal (proc_pid_mountinfo(5)); the library has
// undone that.
func exactly(path string) mountinfo.FilterFunc {
	return func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != path, false }
}

// mountOf is the id, as mountinfo prints it, of the mount that f lies on.
func mountOf(f *os.File) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, &fs.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	return st.Mnt_id, nil
}

// ownMounts are the mount ids and the device of our superblock on the tree, in
// this namespace.
func (d *Driver) ownMounts() (ids map[uint64]bool, dev uint64, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, d.tree, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err != nil {
		return nil, 0, &fs.PathError{Op: "statx", Path: d.tree, Err: err}
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return nil, 0, errors.New("the tree's mount went away")
	}
	return map[uint64]bool{st.Mnt_id: true}, unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}
