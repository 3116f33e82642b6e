package logdisk_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/logdisk"
	"deployx/internal/testns"
)

func TestMain(m *testing.M) {
	logdisk.Main()
	testns.Main(m)
}

// TestCut writes two blocks, flushes, writes two more and zeros over the
// first.
func TestCut(t *testing.T) {
	testns.LeftBehind(t)
	d := logdisk.New(t)
	disk := open(t, d)
	const block, size = 4096, 4 * 4096
	must(t, disk.Truncate(size))
	put := func(b byte, at int64) {
		_, err := disk.WriteAt(bytes.Repeat([]byte{b}, 2*block), at*block)
		must(t, err)
	}
	put('a', 0)
	must(t, disk.Sync())
	put('b', 2)
	must(t, unix.Fallocate(int(disk.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, block))
	if got := d.Requests(); got != "wfwz" || d.Count() != 4 {
		t.Fatalf("%d requests: %q", d.Count(), got)
	}
	after := func(n int, seed uint64) string {
		d.Cut(n, seed)
		f := open(t, d)
		defer f.Close() //nolint:errcheck // only read
		b := make([]byte, size)
		_, err := f.ReadAt(b, 0)
		must(t, err)
		s := ""
		for i := range 4 {
			blk := b[i*block : (i+1)*block]
			if !bytes.Equal(blk, bytes.Repeat(blk[:1], block)) {
				t.Errorf("cut %d, seed %d: a torn block", n, seed)
			}
			s += strings.ReplaceAll(string(blk[:1]), "\x00", "-")
		}
		return s
	}
	for n, want := range []string{"----", "aa--", "aa--", "aabb", "-abb"} {
		if got := after(n, 0); got != want {
			t.Errorf("cut after %d: %s, want %s", n, got, want)
		}
	}
	seen := map[string]bool{}
	for seed := range uint64(300) {
		if seed > 0 {
			seen[after(4, seed)] = true
		}
	}
	for _, s := range []string{"aa--", "aabb", "-a--", "-abb", "aab-", "aa-b", "-ab-", "-a-b"} {
		if !seen[s] {
			t.Errorf("never %s", s)
		}
		delete(seen, s)
	}
	for s := range seen {
		t.Errorf("what was flushed is lost, or was never written: %s", s)
	}
	must(t, disk.Close())
}

// TestFileSystem cuts the power at every request from a file's fsync to the sync
// of another: the first is there whatever the cache loses, the second may be
// gone, and once it has been synced is there too. What is written to what a cut
// left stays out of the disk.
func TestFileSystem(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) {
			testns.LeftBehind(t)
			d := logdisk.New(t)
			img := testns.NewImage(t, testns.ImageOptions{Type: kind, Open: d.Open})
			synced, other := filepath.Join(img.Dir, "synced"), filepath.Join(img.Dir, "other")
			put(t, synced, true)
			must(t, syncDir(img.Dir))
			from := d.Count()
			put(t, other, false)
			put(t, other, true)
			must(t, syncDir(img.Dir))
			to := d.Count()
			if log := d.Requests()[:to]; !strings.HasSuffix(log[:from], "f") || !strings.HasSuffix(log, "f") {
				t.Errorf("fsync returned without a flush: %s, %s", log[:from], log[from:])
			}
			img.Unmount()
			gone := 0
			for n := from; n <= to; n++ {
				for seed := range uint64(3) {
					d.Cut(n, seed)
					img.Mount()
					if !there(t, synced) || n == to && !there(t, other) {
						t.Errorf("cut %d of %d to %d, seed %d: what was synced is gone", n, from, to, seed)
					}
					if !there(t, other) {
						gone++
					}
					put(t, filepath.Join(img.Dir, "later"), true)
					img.Unmount()
				}
			}
			if gone < 3 {
				t.Errorf("in %d cuts what was not synced is gone", gone)
			}
			t.Logf("%d requests, in %d of %d cuts what was not synced is gone", to-from, gone, 3*(to-from+1))
			d.Cut(to, 0)
			img.Mount()
			if _, err := os.Lstat(filepath.Join(img.Dir, "later")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what was written after a cut: %v", err)
			}
			img.Unmount()
		})
	}
}

var content = bytes.Repeat([]byte("content "), 2000)

func put(t *testing.T, name string, sync bool) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	_, err = f.Write(content)
	must(t, err)
	if sync {
		must(t, f.Sync())
	}
	must(t, f.Close())
}

func there(t *testing.T, name string) bool {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	return bytes.Equal(b, content)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func open(t *testing.T, d *logdisk.Disk) *os.File {
	t.Helper()
	f, err := d.Open()
	must(t, err)
	return f
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
