// Package mounts lists what is mounted below a directory, as the directory is
// seen now: what lies hidden below another mount is not.
//
// It is not for changing mounts.
package mounts

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Below lists the mounts below dir, which is absolute and free of links; one
// comes before those that stand on it. It reads all of mountinfo, unless None
// knows better.
func Below(dir string) ([]*mountinfo.Info, error) {
	if None(dir) {
		return nil, nil
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	top, err := ID(dir)
	if err != nil {
		return nil, err
	}
	return On(all, top, dir), nil
}

// On lists those of all that stand on the mount with this id, below dir, and
// those that stand on them in turn.
func On(all []*mountinfo.Info, id int, dir string) (list []*mountinfo.Info) {
	on := map[int][]*mountinfo.Info{}
	for _, m := range all {
		on[m.Parent] = append(on[m.Parent], m)
	}
	for _, m := range on[id] {
		if m.ID != id && strings.HasPrefix(m.Mountpoint, dir+"/") {
			list = append(list, m)
		}
	}
	for i := 0; i < len(list); i++ {
		list = append(list, on[list[i].ID]...)
	}
	return list
}

// None tells, in a microsecond or two, that nothing stands on the mount that dir
// lies on (listmount(2), Linux 6.8). False may mean that the kernel cannot tell.
func None(dir string) bool {
	id, _, err := UniqueID(dir)
	if err != nil {
		return false
	}
	n, err := List(0, id, 0, make([]uint64, 1))
	return err == nil && n == 0
}

// IsRoot tells whether something is mounted on path itself (STATX_ATTR_MOUNT_ROOT,
// Linux 5.8).
func IsRoot(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// ID is the id, as mountinfo prints it, of the mount that path leads to. It may be
// used again after an unmount.
func ID(path string) (int, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &st)
	if err != nil {
		return 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return int(st.Mnt_id), nil
}
