package fallback_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// TestHostileTree swaps directories of the tree for symbolic links that lead
// outside, as fast as it can, while the driver walks, captures and restores.
// Whatever it meets, nothing outside is read or written.
func TestHostileTree(t *testing.T) {
	for name, old := range map[string]bool{"openat2": false, "steps": true} {
		t.Run(name, func(t *testing.T) { hostile(t, old) })
	}
}

const secret = "never to be captured"

func hostile(t *testing.T, old bool) {
	dir := t.TempDir()
	tree, outside, state := filepath.Join(dir, "tree"), filepath.Join(dir, "outside"), filepath.Join(dir, "state")
	script(t, dir, `mkdir -p tree/{a,b,c}/sub outside/sub; for d in tree/{a,b,c} outside; do
		for i in 1 2 3 4 5; do echo "$d $i" >$d/$i; echo "$d $i" >$d/sub/$i; done; done
		for i in 1 2 3 4 5 6; do echo "never to be captured" >outside/secret$i; done
		for d in a b c; do ln -s ../outside tree/link-$d; done`)
	before := picture(t, outside)
	o := fallback.Options{Tree: tree, State: state}
	if old {
		o = o.Old()
	}
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v := show(t, d)
	var stop atomic.Bool
	var swaps atomic.Int64
	var wg sync.WaitGroup
	for _, name := range []string{"a", "b", "c"} {
		wg.Go(func() { swapLoop(t, tree, name, &stop, &swaps) })
	}
	for swaps.Load() < 3 {
		runtime.Gosched()
	}
	steps := 60
	if testns.Emulated() {
		steps = 10
	}
	for i := range steps {
		v = hostileStep(t, d, v, tree, i)
	}
	stop.Store(true)
	wg.Wait()
	diff(t, before, picture(t, outside))
	noSecret(t, state)
	t.Logf("%d swaps", swaps.Load())
	calm(t, d, v, tree)
	must(t, d.Close())
}

func swapLoop(t *testing.T, tree, name string, stop *atomic.Bool, swaps *atomic.Int64) {
	dir, link := filepath.Join(tree, name), filepath.Join(tree, "link-"+name)
	for !stop.Load() {
		err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
		if err != nil && !errors.Is(err, unix.ENOENT) { // a restore may have one of them out
			t.Errorf("swap: %v", err)
			return
		}
		swaps.Add(1)
	}
}

// hostileStep writes, captures and rolls back. The driver may refuse to go on
// in such a tree, and must not do anything else.
func hostileStep(t *testing.T, d *fallback.Driver, v snapshot.View, tree string, i int) snapshot.View {
	t.Helper()
	for _, name := range []string{"a/1", "b/sub/2", "link-c/3"} {
		fd, err := unix.Open(tree, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		f, err := unix.Openat2(fd, name, &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_APPEND, Resolve: unix.RESOLVE_NO_SYMLINKS})
		if err == nil {
			_, err = unix.Write(f, []byte("more\n"))
			must(t, errors.Join(err, unix.Close(f)))
		}
		must(t, unix.Close(fd))
	}
	if _, err := d.Dirty(t.Context(), v); err != nil {
		t.Logf("step %d: dirty: %v", i, err)
		return v
	}
	next := snapshot.View{Layers: v.Layers, Open: snapshot.NewLayerID()}
	if i%3 == 0 {
		next.Layers = append(next.Layers[:len(next.Layers):len(next.Layers)], v.Open)
	}
	if _, err := d.Show(t.Context(), next); err != nil {
		if code := snapshot.CodeOf(err); code != snapshot.CodeTreeBusy {
			t.Logf("step %d: show: %v", i, err)
		}
		return v
	}
	return next
}

// noSecret looks through everything that the driver keeps.
func noSecret(t *testing.T, state string) {
	t.Helper()
	must(t, filepath.WalkDir(state, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(secret)) {
			t.Errorf("%q holds bytes from outside the tree", path)
		}
		return err
	}))
}

// calm: when the tree has come to rest the driver is exact again.
func calm(t *testing.T, d *fallback.Driver, v snapshot.View, tree string) {
	t.Helper()
	dirty(t, d, v)
	v = show(t, d, append(v.Layers[:len(v.Layers):len(v.Layers)], v.Open)...)
	before := picture(t, tree)
	script(t, tree, `rm -rf a b link-*; mkdir a; echo x >a/1; ln -s / b`)
	push(t, d, v)
	show(t, d, v.Layers...)
	if ds := treecmp.Diff(before, picture(t, tree), treecmp.Options{}); len(ds) > 0 {
		t.Fatalf("after the storm a rollback is not exact:\n%v", ds)
	}
}
