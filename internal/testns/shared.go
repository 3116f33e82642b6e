package testns

import (
	"testing"

	"golang.org/x/sys/unix"
)

// SharedDir is a directory of a test's on a mount that passes on what is mounted there,
// as systemd makes them. The mount goes at the test's end.
func SharedDir(t testing.TB) string {
	t.Helper()
	Need(t)
	dir := t.TempDir()
	for _, m := range []struct {
		source string
		flags  uintptr
	}{{dir, unix.MS_BIND}, {"", unix.MS_SHARED}} {
		if err := unix.Mount(m.source, dir, "", m.flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
