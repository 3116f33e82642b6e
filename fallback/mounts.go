package fallback

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// What is mounted below the tree belongs to another filesystem: it is neither
// captured nor restored. The driver then works through a mount of its own on which
// nothing stands (open_tree(2) with OPEN_TREE_CLONE, Linux 5.2), and sees what the
// mounts cover. Who may not make one is refused by the scan (see explain).

// uncovered opens the tree's directory without what is mounted below it.
func (d *Driver) uncovered() (fd int, err error) {
	clone, err := unix.OpenTree(unix.AT_FDCWD, d.opt.Tree, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return -1, sysError("open_tree", d.opt.Tree, err)
	}
	defer closing(clone, &err)
	return openAt(clone, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
}

// refuseMounted refuses a restore that would take away what something is mounted
// on, or would take the mount along to where it is removed.
func (d *Driver) refuseMounted(p *plan) error {
	list, err := mounts.Below(d.opt.Tree)
	if err != nil || len(list) == 0 {
		return err
	}
	e := &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("mounts below %q are in the way", d.opt.Tree),
		Hint: "unmount them (umount PATH) and try again; nothing was changed",
	}
	for _, m := range list {
		rel := strings.TrimPrefix(m.Mountpoint, d.opt.Tree+"/")
		for _, t := range p.tops {
			if t.pre != nil && (rel == t.path || strings.HasPrefix(rel, t.path+"/")) {
				e.Holders = append(e.Holders, snapshot.Holder{Name: "mount", How: "is mounted where the state asked for has something else", Path: m.Mountpoint})
				break
			}
		}
	}
	if len(e.Holders) == 0 {
		return nil
	}
	return e
}

// mayNotClone: not allowed, or a kernel before 5.2.
func mayNotClone(err error) bool {
	return errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS)
}
