package overlay

import (
	"context"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Stale names processes whose working directory or open files are in base,
// below the mount: they see the tree as it was before it was shown, and what they
// write goes where nobody looks. None while the tree is not mounted. It costs a
// look at every process.
func (d *Driver) Stale(ctx context.Context) ([]snapshot.Holder, error) {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return nil, err
	}
	return d.staleHolders(nil)(), nil
}

// staleHolders returns what names them, at any time and beside other work, once
// the tree is mounted. below are the mounts below the tree that were carried: who
// has a directory in one of them is named too. Others of another filesystem are
// another namespace's business.
func (d *Driver) staleHolders(below map[uint64]bool) func() []snapshot.Holder {
	base, err := d.openBase()
	if err != nil {
		return func() []snapshot.Holder { return nil }
	}
	defer base.Close() //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if unix.Fstat(int(base.Fd()), &st) != nil {
		return func() []snapshot.Holder { return nil }
	}
	return func() []snapshot.Holder { return staleIn(d.tree, st.Dev, below) }
}

// staleIn looks for links into a tree whose base is on a device.
func staleIn(tree string, dev uint64, below map[uint64]bool) (stale []snapshot.Holder) {
	pids, err := processes()
	if err != nil {
		return nil
	}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid)
		for _, link := range append(descriptors(pid), dir+"/cwd", dir+"/root") {
			path, err := os.Readlink(link)
			if err != nil || !within(path, tree) {
				continue
			}
			at, err := statLink(link)
			if err != nil || unix.Mkdev(at.Dev_major, at.Dev_minor) != dev && !(below[at.Mnt_id] && at.Mode&unix.S_IFMT == unix.S_IFDIR) {
				continue
			}
			if how := staleBy(link); how != "" {
				stale = append(stale, snapshot.Holder{PID: pid, Name: comm(pid), How: how, Path: path})
			}
		}
	}
	return stale
}

// staleBy says how a link holds base; "" for a file that is only read, which
// shows no more than it ever did.
func staleBy(link string) string {
	how, info := filepath.Base(link), fdInfo(link)
	if info == "" {
		return how
	}
	if flags := fdFlags(info); flags&unix.O_ACCMODE == unix.O_RDONLY && flags&unix.O_DIRECTORY == 0 {
		return ""
	}
	return "fd " + how
}
