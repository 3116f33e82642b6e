package testns

import (
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
)

// MountedLayers is how many layers the kernel says that the mount on a tree has:
// lower directories, base among them, and the upper one.
func MountedLayers(t testing.TB, tree string) int {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(tree))
	if err != nil || len(all) == 0 {
		t.Fatal("nothing is mounted:", err)
	}
	o := all[len(all)-1].VFSOptions
	return strings.Count(o, "lowerdir+=") + strings.Count(o, "upperdir=")
}
