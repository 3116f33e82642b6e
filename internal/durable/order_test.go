package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"deployx/internal/durable"
	"deployx/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
