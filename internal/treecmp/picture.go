// Package treecmp takes whole-tree pictures of a directory and tells how two
// of them differ, to the nanosecond and the extended attribute.
//
// It is for tests and checks. It is not for finding out what changed in a hurry:
// taking a picture reads every byte that is not in a hole.
package treecmp

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Entry is what a picture knows of one name. Access and change times are left
// out, since looking at a file or restoring it changes them; so are the sizes
// and link counts of directories, which file systems count as they like.
type Entry struct {
	Type   byte              // as in find(1) -type: f d l p s c b
	Mode   uint32            // permission bits with setuid, setgid, sticky (07777)
	UID    uint32            // owner
	GID    uint32            // group
	Mtime  int64             // nanoseconds since the epoch
	Size   int64             // bytes; 0 for directories
	Sum    string            // of a file's contents, see Sum
	Holes  int64             // bytes of a file in holes, as SEEK_HOLE tells
	Target string            // of a symbolic link
	Rdev   uint64            // of a device
	Nlink  uint64            // names; 0 for directories
	Group  string            // first path of those in the tree that are one file; "" if alone
	Flags  uint32            // inode flags that chattr(1) sets: S i a d A
	Xattrs map[string]string // all that a privileged reader sees, ACLs and capabilities too
}

// Picture is every entry below a directory by its path, the bytes as the
// kernel has them. The directory itself is ".".
type Picture map[string]Entry

// Paths are the picture's paths in byte order.
func (p Picture) Paths() []string { return slices.Sorted(maps.Keys(p)) }

// OverlayXattrs lists the paths that carry extended attributes of overlayfs's
// own. Seen through a mount, each is a leak.
func (p Picture) OverlayXattrs() []string {
	var leaks []string
	for _, path := range p.Paths() {
		for name := range p[path].Xattrs {
			if strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
				leaks = append(leaks, fmt.Sprintf("%q: %s", path, name))
			}
		}
	}
	return leaks
}

// group fills in Group from the inodes that take saw.
func (p Picture) group(inodes map[inode][]string) {
	for _, paths := range inodes {
		if len(paths) < 2 {
			continue
		}
		first := slices.Min(paths)
		for _, path := range paths {
			e := p[path]
			e.Group = first
			p[path] = e
		}
	}
}
