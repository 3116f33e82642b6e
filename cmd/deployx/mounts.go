package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"

	"deployx/snapshot"
)

// treeMounts are the mount points, "/" left out, that the trees' files are
// reached through: those of file systems that the boot mounts with the local
// ones, and those that it mounts when there is a network. What we mounted
// ourselves is none of them.
func treeMounts(trees []snapshot.Tree) (local, remote []string, err error) {
	netdev := netdevMounts("/etc/fstab")
	_, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		p := m.Mountpoint
		if p == "/" || strings.HasPrefix(m.Source, "deployx:") || !holdsTree(p, trees) {
			return true, false
		}
		if netdev[p] || networkType(m.FSType) {
			remote = append(remote, p)
		} else {
			local = append(local, p)
		}
		return true, false
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read mountinfo: %w", err)
	}
	slices.Sort(local)
	return slices.Compact(local), remote, nil
}

func holdsTree(point string, trees []snapshot.Tree) bool {
	return slices.ContainsFunc(trees, func(t snapshot.Tree) bool { return within(t.Path, point) || within(t.Store, point) })
}

// within tells whether path is dir or below it.
func within(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// netdevMounts are the mount points that fstab says need the network
// (systemd.mount(5), _netdev).
func netdevMounts(fstab string) map[string]bool {
	found := map[string]bool{}
	text, err := os.ReadFile(fstab)
	if err != nil {
		return found // without the file nothing is said in it
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) > 3 && slices.Contains(strings.Split(f[3], ","), "_netdev") {
			found[f[1]] = true
		}
	}
	return found
}

// networkType is systemd's own list, fstype_is_network in src/basic/mountpoint-util.c.
func networkType(fs string) bool {
	fs = strings.TrimPrefix(fs, "fuse.")
	return slices.Contains([]string{
		"afs", "ceph", "cifs", "smb3", "smbfs", "sshfs", "ncpfs", "ncp", "nfs", "nfs4", "gfs", "gfs2", "glusterfs",
		"pvfs2", "ocfs2", "lustre", "davfs", "9p", "virtiofs",
	}, fs)
}
