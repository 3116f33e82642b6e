// Package logdisk is a disk for tests that remembers every write and flush it
// was sent, and can become what a power cut between any two of them would have
// left: what was flushed, and of the rest all or some.
//
// It is a file on a FUSE file system, for a loop device to lie over, and tells
// nothing of how fast a disk is.
package logdisk

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

// Disk is served by a process of its own until its test ends. Its methods may
// not be called at the same time.
type Disk struct {
	t    testing.TB
	path string
	in   io.Writer
	out  *bufio.Reader
	cut  *os.File // in memory; nil before the first cut
}

// New makes a disk of no size: truncate(2) gives it one. The test's TestMain has
// called Main.
func New(t testing.TB) *Disk {
	t.Helper()
	testns.Need(t)
	dir := t.TempDir()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envServe+"="+dir)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	in, out := testns.Start(t, cmd)
	d := &Disk{t: t, path: filepath.Join(dir, "disk"), in: in, out: out}
	t.Cleanup(func() {
		in.Close() //nolint:errcheck // Wait tells
		if err := cmd.Wait(); err != nil {
			t.Errorf("logdisk: %v", err)
		}
		d.cut.Close() //nolint:errcheck // memory
	})
	if got := testns.Line(t, out); got != "ready\n" {
		t.Fatalf("logdisk: %q", got)
	}
	return d
}

// Open opens the disk, or what the last cut left of it, for testns.ImageOptions.
func (d *Disk) Open() (*os.File, error) {
	path := d.path
	if d.cut != nil {
		path = d.cut.Name()
	}
	return os.OpenFile(path, os.O_RDWR, 0)
}

// Requests are what the disk was sent so far, in order, a byte each: w for a
// write, z for zeros or a discard, f for a flush.
func (d *Disk) Requests() string {
	d.t.Helper()
	return d.ask("requests")
}

// Count is the length of Requests.
func (d *Disk) Count() (n int) {
	d.t.Helper()
	if _, err := fmt.Sscan(d.ask("count"), &n); err != nil {
		d.t.Fatal(err)
	}
	return n
}

// Cut makes Open open a copy of the disk as it is when the power has gone after
// the first n requests: those before the last flush among them were served. Of
// those after it all were if seed is 0; else the cache has lost some, or blocks
// of some, as the seed has it.
func (d *Disk) Cut(n int, seed uint64) {
	d.t.Helper()
	fi, err := os.Stat(d.path)
	if err != nil {
		d.t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("cut", unix.MFD_CLOEXEC)
	if err != nil {
		d.t.Fatal(os.NewSyscallError("memfd_create", err))
	}
	d.cut.Close() //nolint:errcheck // memory
	d.cut = os.NewFile(uintptr(fd), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd))
	if err := d.cut.Truncate(fi.Size()); err != nil {
		d.t.Fatal(err)
	}
	d.ask(fmt.Sprintf("cut %d %d %s", n, seed, d.cut.Name()))
}

// Fail makes every write, zeroing and flush fail with EIO from now on.
func (d *Disk) Fail() {
	d.t.Helper()
	d.ask("fail")
}

func (d *Disk) ask(what string) string {
	d.t.Helper()
	if _, err := fmt.Fprintln(d.in, what); err != nil {
		d.t.Fatal(err)
	}
	return strings.TrimSuffix(testns.Line(d.t, d.out), "\n")
}
