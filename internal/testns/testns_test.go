package testns_test

import (
	"os"
	"path/filepath"
	"testing"

	"deployx/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func TestImages(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			testns.LeftBehind(t)
			img := testns.NewImage(t, testns.ImageOptions{Type: fs})
			name := filepath.Join(img.Dir, "f")
			if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			img.Unmount()
			if _, err := os.Stat(name); err == nil {
				t.Error("file is there after Unmount")
			}
			img.Mount()
			if got, err := os.ReadFile(name); err != nil || string(got) != "x" {
				t.Errorf("after Mount: %q, %v", got, err)
			}
		})
	}
}
