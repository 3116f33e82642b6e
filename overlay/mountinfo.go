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
	found, err := mountinfo.GetMounts(exactly(d.tree))
	if err != nil {
		return nil, 0, fmt.Errorf("read mountinfo: %w", err)
	}
	top, err := mounts.ID(d.tree)
	if err != nil {
		return nil, 0, err
	}
	ids = map[uint64]bool{uint64(top): true}
	for _, m := range found {
		if m.ID == top {
			return ids, unix.Mkdev(uint32(m.Major), uint32(m.Minor)), nil
		}
	}
	return nil, 0, errors.New("the tree's mount went away")
}
