package overlay

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/testns"
)

// TestSwapIdle: a swap waits for the proof that nobody can write to the old view
// unless the kernel has said so already.
func TestSwapIdle(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 12, "a list of all mount namespaces")
	for name, c := range map[string]struct {
		idle bool
		hold func(t *testing.T, tree string) (stop func())
	}{
		"nobody": {true, func(*testing.T, string) func() { return func() {} }},
		"a reader": {false, func(t *testing.T, tree string) func() {
			f, err := os.Open(filepath.Join(tree, "kept"))
			if err != nil {
				t.Fatal(err)
			}
			return func() { f.Close() } //nolint:errcheck // read only
		}},
		"a copy in another namespace": {false, func(t *testing.T, tree string) func() {
			tell, _ := inNamespace(t, "private", "")
			return func() {
				if said := tell("cat " + tree + "/who | tr '\\n' ' '; { echo x > " + tree + "/n; } 2>&1 | grep -o 'Read-only.*' | tr '\\n' ' '"); said != "layer Read-only file system" {
					t.Errorf("a copy of the old mount: %q", said)
				}
			}
		}},
		"a bind mount": {false, func(t *testing.T, tree string) func() {
			at := t.TempDir()
			if err := unix.Mount(tree, at, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := os.WriteFile(filepath.Join(at, "n"), nil, 0o644); !errors.Is(err, unix.EROFS) {
					t.Error("a bind mount of the old view:", err)
				}
				if err := unix.Unmount(at, 0); err != nil {
					t.Error(err)
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newSwapRig(t, Options{})
			r.write(1)
			var idle bool
			stop := func() {}
			defer crash.SetHook(func(at string) {
				switch at {
				case "overlay.built": // when all have been looked for
					stop = c.hold(t, r.tree)
				case "overlay.idle":
					idle = true
				}
			})()
			for range 50 { // another test's look at every process keeps the mount busy for a moment
				r.push()
				if stop(); idle == c.idle {
					return
				}
			}
			t.Errorf("taken for idle: %v", idle)
		})
	}
}

// TestSwapClone: who writes by a clone of the old mount that no namespace has is told
// of, and can open nothing for writing there any more once he has closed that.
func TestSwapClone(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 12, "a list of all mount namespaces")
	for _, writes := range []bool{true, false} {
		r := newSwapRig(t, Options{})
		r.write(1)
		var said []string
		r.d.OnWait(func(s string) { said = append(said, s) })
		r.patient = true // another test's look at every process may have had him noticed
		var clone, file *os.File
		restore := crash.SetHook(func(at string) {
			if at != "overlay.built" {
				return
			}
			clone.Close() //nolint:errcheck // of the try before, if there was one
			file.Close()  //nolint:errcheck // likewise
			var err error
			if clone, err = openTree(unix.AT_FDCWD, r.tree, unix.OPEN_TREE_CLONE); err == nil && writes {
				file, err = openAt(int(clone.Fd()), "n", unix.O_RDWR)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		r.push()
		restore()
		r.d.gone.Wait()
		if told := len(said) == 1 && strings.Contains(said[0], "a clone of a former mount"); told != writes {
			t.Errorf("he writes %v: %q", writes, said)
		}
		_, err := openAt(int(clone.Fd()), "n", unix.O_RDWR)
		if writes {
			if b, err := io.ReadAll(file); err != nil || string(b) != "1" {
				t.Errorf("what he has open: %q %v", b, err)
			}
			err = errors.Join(err, file.Close())
		}
		if errors.Is(err, unix.EROFS) == writes {
			t.Error("opened by the clone:", err)
		}
		if err := clone.Close(); err != nil {
			t.Error(err)
		}
	}
}
