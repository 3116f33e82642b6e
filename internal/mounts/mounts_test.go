package mounts

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

// TestBelow: what is seen below a directory is listed, in order, and what a mount
// on the directory hides is not.
func TestBelow(t *testing.T) {
	testns.Need(t)
	dir := filepath.Join(t.TempDir(), "a b")
	sh := func(script string) {
		t.Helper()
		if out, err := exec.Command("bash", "-ec", script, "bash", dir).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	want := func(names ...string) {
		t.Helper()
		list, err := Below(dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range list {
			got = append(got, m.Mountpoint[len(dir):])
		}
		if !slices.Equal(got, names) || None(dir) && len(names) > 0 {
			t.Errorf("got %q, want %q", got, names)
		}
	}
	sh(`mkdir "$1" "$1x"; mount -t tmpfs t "$1"; mkdir "$1/s"`)
	defer sh(`umount -R "$1"; umount "$1x"`)
	want()
	if !None(dir) {
		t.Log("this kernel has no listmount")
	}
	sh(`mount -t tmpfs x "$1x"; mount -t tmpfs s "$1/s"; mkdir "$1/s/t"; mount -t tmpfs t "$1/s/t"; mount -t tmpfs over "$1/s/t"`)
	want("/s", "/s/t", "/s/t")
	sh(`mount -t tmpfs hides "$1"`)
	want()
	sh(`umount "$1"`)
	want("/s", "/s/t", "/s/t")
}

// TestSource: what the kernel says of one mount is what mountinfo prints.
func TestSource(t *testing.T) {
	testns.Need(t)
	dir := t.TempDir()
	if err := unix.Mount("a b\tc\\", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, 0) //nolint:errcheck // a test
	id, _, err := UniqueID(dir)
	if err != nil {
		t.Skip("this kernel has no unique ids: ", err)
	}
	fstype, source, err := Source(id)
	if errors.Is(err, unix.ENOTSUP) {
		t.Skip("this kernel does not tell the source")
	}
	if err != nil || fstype != "tmpfs" || source != "a b\tc\\" {
		t.Errorf("%q %q %v", fstype, source, err)
	}
}

func BenchmarkNone(b *testing.B) {
	for b.Loop() {
		None("/proc")
	}
}
