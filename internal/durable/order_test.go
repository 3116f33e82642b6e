package durable_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"deployx/internal/durable"
	"deployx/internal/logdisk"
	"deployx/internal/testns"
)

func TestMain(m *testing.M) {
	logdisk.Main()
	testns.Main(m)
}

func TestOrdered(t *testing.T) {
	for name, c := range map[string]struct {
		o       testns.ImageOptions
		ordered bool
	}{
		"ext4":                   {testns.ImageOptions{Type: "ext4"}, true},
		"ext4 without a journal": {testns.ImageOptions{Type: "ext4", Mkfs: []string{"-O", "^has_journal"}}, false},
		"xfs":                    {testns.ImageOptions{Type: "xfs"}, true},
		"btrfs":                  {testns.ImageOptions{Type: "btrfs"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := durable.Ordered(testns.NewImage(t, c.o).Dir); got != c.ordered {
				t.Errorf("ordered: %v", got)
			}
		})
	}
}

// TestWriteOut: a name that lasts has its contents if they were written out before
// it was given, and need not have them if not.
func TestWriteOut(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		for _, out := range []bool{true, false} {
			img := testns.NewImage(t, testns.ImageOptions{Type: fs})
			name, content := filepath.Join(img.Dir, "f"), make([]byte, 300_000)
			must(t, os.WriteFile(name+".tmp", content, 0o600))
			must(t, os.Symlink("gone", filepath.Join(img.Dir, "link")))
			if out {
				must(t, durable.WriteOut(name+".tmp", filepath.Join(img.Dir, "link"), filepath.Join(img.Dir, "not there"), img.Dir))
			}
			must(t, os.Rename(name+".tmp", name))
			must(t, durable.SyncDir(img.Dir))
			testns.CutPower(img.Dir)
			img.Unmount()
			img.Mount()
			fi, err := os.Stat(name)
			must(t, err)
			if whole := fi.Size() == int64(len(content)); whole != out {
				t.Errorf("%s, written out %v: %d bytes are left", fs, out, fi.Size())
			}
		}
	}
}

// TestGone: a filesystem that shuts down makes nothing last any more. One who lives
// on after that, as when a disk fails, must not be told that it has.
func TestGone(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs+" name", func(t *testing.T) {
			gone(t, fs, func(f *os.File) { must(t, os.Rename(f.Name(), f.Name()+"1")) }, func(f *os.File) error {
				return durable.SyncDir(filepath.Dir(f.Name()))
			})
		})
		t.Run(fs+" content", func(t *testing.T) {
			gone(t, fs, func(f *os.File) {
				_, err := f.WriteString("content")
				must(t, err)
			}, durable.SyncData)
		})
	}
}

func gone(t *testing.T, fs string, change func(*os.File), sync func(*os.File) error) {
	const rounds = 300
	img := testns.NewImage(t, testns.ImageOptions{Type: fs})
	told := 0
	for round := range rounds {
		f, err := os.Create(filepath.Join(img.Dir, fmt.Sprint(round)))
		must(t, err)
		must(t, durable.SyncDir(img.Dir))
		done := make(chan error)
		go func() {
			change(f)
			done <- nil
			done <- sync(f)
		}()
		<-done
		time.Sleep(time.Duration(rand.IntN(100_000)))
		testns.CutPower(img.Dir)
		err = <-done
		must(t, f.Close())
		img.Unmount()
		img.Mount()
		old, _ := os.Stat(f.Name())
		if err == nil {
			if told++; old != nil && old.Size() == 0 {
				t.Errorf("round %d: what was said to last is gone", round)
			}
		}
	}
	if told == 0 || told == rounds {
		t.Errorf("%d of %d were in time", told, rounds)
	}
}

// TestSyncDirFailed: a flush that others asked for has failed, and took along what
// was to last. One who asks after that is told so.
func TestSyncDirFailed(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		disk := logdisk.New(t)
		img := testns.NewImage(t, testns.ImageOptions{Type: fs, Open: disk.Open})
		must(t, os.Mkdir(filepath.Join(img.Dir, "d"), 0o700))
		disk.Fail()
		if err := durable.SyncFilesystem(img.Dir); err == nil {
			t.Errorf("%s: the disk has not failed", fs)
		}
		if err := durable.SyncDir(img.Dir); err == nil {
			t.Errorf("%s: what a failed flush took along is said to last", fs)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
