package fallback

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// coarse is a tree on an ext4 with 128-byte inodes, which keeps whole seconds:
// there a tick is long enough for a race that is certain.
func coarse(t *testing.T) (d *Driver, tree string) {
	t.Helper()
	dir := testns.NewImage(t, testns.ImageOptions{Mkfs: []string{"-I", "128"}}).Dir
	tree = filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	d, err := Open(t.Context(), Options{Tree: tree, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d, tree
}

// TestRace is the race that docs/copy-driver.md tells as a transcript: in the
// second in which a file was captured it is rewritten, with the same length, and
// gets its old time back. Nothing that stat(2) tells has changed. It is seen all
// the same, and would not be if the driver did not know that it could happen.
func TestRace(t *testing.T) {
	for range 20 { // the rewrite must fall into the second of the capture
		if race(t) {
			return
		}
	}
	t.Fatal("in 20 tries the rewrite never fell into the second of the capture")
}

func race(t *testing.T) (won bool) {
	t.Helper()
	d, tree := coarse(t)
	file := filepath.Join(tree, "f")
	untilSecond(t)
	write(t, file, "one")
	v := snapshot.View{Open: snapshot.NewLayerID()}
	if _, err := d.Show(context.Background(), v); err != nil {
		t.Fatal(err)
	}
	before := statOf(t, file)
	write(t, file, "two")
	stamp := time.Unix(before.mtime.sec, int64(before.mtime.nsec))
	if err := os.Chtimes(file, stamp, stamp); err != nil {
		t.Fatal(err)
	}
	if statOf(t, file) != before {
		return false
	}
	captured := *d.ix.root.find("f")
	d.ix.root.find("f").racy = false // as if the driver trusted times
	if is, err := d.Dirty(t.Context(), v); err != nil || is {
		t.Fatalf("without the rule the change is to be missed, else this test shows nothing: dirty %v, %v", is, err)
	}
	*d.ix.root.find("f") = captured
	if is, err := d.Dirty(t.Context(), v); err != nil || !is {
		t.Fatalf("a rewrite in the second of the capture: dirty %v, %v", is, err)
	}
	if _, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "one" {
		t.Fatalf("after the rollback: %q, %v", b, err)
	}
	return true
}

func statOf(t *testing.T, path string) stat {
	t.Helper()
	st, err := statAt(unix.AT_FDCWD, path, path)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// untilSecond waits for the next second to begin.
func untilSecond(t *testing.T) {
	t.Helper()
	for start := time.Now().Unix(); time.Now().Unix() == start; {
		time.Sleep(time.Millisecond)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestQuietRewrite: on this filesystem, whatever its clock, a rewrite of the
// same length that puts the time back is caught, also right after a capture.
func TestQuietRewrite(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(tree, "f")
	write(t, file, "0000")
	d, err := Open(t.Context(), Options{Tree: tree, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	v := snapshot.View{Open: snapshot.NewLayerID()}
	if _, err := d.Show(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 200; i++ {
		fi, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, fmt.Sprintf("%04d", i))
		if err := os.Chtimes(file, fi.ModTime(), fi.ModTime()); err != nil {
			t.Fatal(err)
		}
		if is, err := d.Dirty(t.Context(), v); err != nil || !is {
			t.Fatalf("rewrite %d: dirty %v, %v", i, is, err)
		}
		next := snapshot.View{Layers: append(v.Layers[:len(v.Layers):len(v.Layers)], v.Open), Open: snapshot.NewLayerID()}
		if _, err := d.Show(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		v = next
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestRacyBecomesSettled: the price of a race is paid once. A later scan that
// finds the file unchanged knows it.
func TestRacyBecomesSettled(t *testing.T) {
	d, tree := coarse(t)
	write(t, filepath.Join(tree, "f"), "one")
	v := snapshot.View{Open: snapshot.NewLayerID()}
	if _, err := d.Show(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	if !d.ix.root.find("f").racy {
		t.Fatal("a file written in this second is not racy")
	}
	for end := time.Now().Add(2 * coarseTick); d.ix.root.find("f").racy && time.Now().Before(end); {
		if is, err := d.Dirty(t.Context(), v); err != nil || is {
			t.Fatalf("dirty %v, %v", is, err)
		}
	}
	if d.ix.root.find("f").racy {
		t.Fatal("still racy after its second has long passed")
	}
}
