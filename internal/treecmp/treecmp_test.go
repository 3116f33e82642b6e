package treecmp_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
)

func TestMain(m *testing.M) { testns.Main(m) }

func take(t *testing.T, dir string) treecmp.Picture {
	t.Helper()
	pic, err := treecmp.Take(dir)
	if err != nil {
		t.Fatal(err)
	}
	return pic
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDiff changes one thing at a time: each must be seen, and only it.
func TestDiff(t *testing.T) {
	testns.Need(t)
	dir := testns.NewImage(t, testns.ImageOptions{}).Dir
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(path("d/e"), 0o755))
	for _, name := range []string{"f", "d/g", "d/new\nline", "d/\xff"} {
		must(t, os.WriteFile(path(name), []byte(strings.Repeat("x", 10000)), 0o644))
	}
	must(t, os.Symlink("f", path("link")))
	must(t, unix.Mkfifo(path("fifo"), 0o600))
	must(t, unix.Mknod(path("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, os.WriteFile(path("hole"), nil, 0o600))
	must(t, os.Truncate(path("hole"), 64<<20))
	old := time.Unix(1e9, 999)
	keepTime := func(name string) {
		t.Helper()
		must(t, os.Chtimes(path(name), old, old))
	}
	for _, name := range []string{"f", "d/g", "d/e", "d", "."} {
		keepTime(name)
	}
	for _, c := range []struct {
		want string
		do   func()
	}{
		{"", func() {}},
		{`"f" contents`, func() {
			fd, err := unix.Open(path("f"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			must(t, err)
			_, err = unix.Pwrite(fd, []byte("y"), 5000)
			must(t, err)
			must(t, unix.Close(fd))
			keepTime("f")
		}},
		{`"f" mode`, func() { must(t, unix.Chmod(path("f"), 0o4644)); keepTime("f") }},
		{`"d/\xff" owner`, func() { must(t, os.Lchown(path("d/\xff"), 1, 0)) }},
		{`"d/e" mtime`, func() { must(t, os.Chtimes(path("d/e"), old, old.Add(time.Nanosecond))) }},
		{`"link" xattrs`, func() { must(t, unix.Lsetxattr(path("link"), "trusted.t", []byte("v"), 0)) }},
		{`"." xattrs`, func() { must(t, unix.Lsetxattr(dir, "user.t", []byte("v"), 0)) }},
		{`"d/new\nline" hard link with`, func() {
			must(t, os.Remove(path("d/\xff")))
			must(t, os.Link(path("d/new\nline"), path("d/\xff")))
			must(t, os.Chtimes(path("d"), old, old))
		}},
		{`"null" device`, func() {
			must(t, os.Remove(path("null")))
			must(t, unix.Mknod(path("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		}},
		{`"fifo" is missing`, func() { must(t, os.Remove(path("fifo"))) }},
		{`"fifo" should not be there`, func() { must(t, unix.Mkfifo(path("fifo"), 0o600)) }},
		{`"hole" bytes in holes`, func() {
			fd, err := unix.Open(path("hole"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
			must(t, err)
			_, err = unix.Pwrite(fd, make([]byte, 4096), 1<<20)
			must(t, err)
			must(t, unix.Close(fd))
		}},
	} {
		before := take(t, dir)
		c.do()
		ds := treecmp.Diff(before, take(t, dir), treecmp.Options{})
		if !strings.Contains(ds.String(), c.want) || c.want == "" && len(ds) > 0 {
			t.Errorf("want %s, got:\n%v", c.want, ds)
		}
	}
}

// TestSum: a hole and zeroes have one sum, and moving a block changes it.
func TestSum(t *testing.T) {
	sum := func(s string) string {
		t.Helper()
		got, err := treecmp.Sum(strings.NewReader(s))
		must(t, err)
		return got
	}
	zero := strings.Repeat("\x00", 4096)
	if sum("") != sum(zero) {
		t.Error("zeroes go into the sum")
	}
	if sum("a"+zero) == sum(zero+"a") {
		t.Error("the offset does not go into the sum")
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("a"+zero+zero+"b"), 0o600))
	if got := take(t, dir)["f"].Sum; got != sum("a"+zero+zero+"b") {
		t.Error("a file and a reader of the same bytes have two sums")
	}
}
