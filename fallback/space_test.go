package fallback_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// onImage makes a tree and a driver on a filesystem of their own.
func onImage(t *testing.T, o testns.ImageOptions) (d *fallback.Driver, tree, state string) {
	t.Helper()
	dir := testns.NewImage(t, o).Dir
	tree, state = filepath.Join(dir, "tree"), filepath.Join(dir, "state")
	must(t, os.Mkdir(tree, 0o755))
	d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: state})
	must(t, err)
	t.Cleanup(func() { must(t, d.Close()) })
	return d, tree, state
}

func wantCode(t *testing.T, err error, code snapshot.Code, words ...string) {
	t.Helper()
	if snapshot.CodeOf(err) != code {
		t.Fatalf("want %s, got %s: %v", code, snapshot.CodeOf(err), err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
}

// TestBaselineTooLarge: refused before a byte is copied, with the size.
func TestBaselineTooLarge(t *testing.T) {
	d, tree, state := onImage(t, testns.ImageOptions{Size: 128 << 20})
	script(t, tree, `head -c 60M /dev/urandom >a; head -c 5M /dev/urandom >b`)
	_, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	wantCode(t, err, snapshot.CodeNoSpace, "65.0 MiB", state)
	packs, err := os.ReadDir(filepath.Join(state, "objects"))
	must(t, err)
	if len(packs) > 0 {
		t.Errorf("%d packs are left of a baseline that was refused", len(packs))
	}
	must(t, os.Remove(filepath.Join(tree, "a")))
	show(t, d)
}

// TestMaxBytes: the bound holds for base and for what comes after.
func TestMaxBytes(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	script(t, dir, `mkdir tree; head -c 700K /dev/urandom >tree/a; truncate -s 1G tree/sparse`)
	open := func(limit int64) *fallback.Driver {
		d, err := fallback.Open(t.Context(), fallback.Options{Tree: tree, State: filepath.Join(dir, "state"), MaxBytes: limit})
		must(t, err)
		return d
	}
	d := open(500 << 10)
	_, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	wantCode(t, err, snapshot.CodeNoSpace, "700.0 KiB", "--max-bytes")
	must(t, d.Close())
	d = open(1 << 20)
	v := show(t, d)
	script(t, tree, `head -c 200K /dev/urandom >b`)
	v = push(t, d, v)
	before := picture(t, tree)
	script(t, tree, `head -c 200K /dev/urandom >c`)
	_, err = d.Dirty(t.Context(), v)
	wantCode(t, err, snapshot.CodeNoSpace, "200.0 KiB", "--max-bytes")
	must(t, os.Remove(filepath.Join(tree, "c")))
	dirty(t, d, v)
	show(t, d, v.Layers...)
	diff(t, before, picture(t, tree))
	must(t, d.Close())
}

// TestRestoreOnFullDisk fills the disk to many levels and rolls back at each:
// it is done whole or, with an error that says so, not at all.
func TestRestoreOnFullDisk(t *testing.T) {
	for _, inTree := range []bool{false, true} {
		t.Run(fmt.Sprintf("stage in tree %v", inTree), func(t *testing.T) { restoreOnFullDisk(t, inTree) })
	}
}

func restoreOnFullDisk(t *testing.T, inTree bool) {
	dir := testns.NewImage(t, testns.ImageOptions{Size: 64 << 20}).Dir
	o := fallback.Options{Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state")}
	if inTree {
		o = o.Old()
	}
	script(t, dir, `mkdir -p tree/d/e; cd tree; for i in $(seq 40); do head -c ${i}K /dev/urandom >d/$i; echo $i >d/e/$i; done
		ln d/1 hard; setfattr -n user.x -v "$(head -c 500 /dev/zero | tr '\0' x)" d/2`)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v := show(t, d)
	base := picture(t, o.Tree)
	script(t, o.Tree, `rm -rf d/e hard; for i in $(seq 30); do echo changed >d/$i; done; chmod 700 d; mv d/40 forty; touch d/39; setfattr -x user.x d/2`)
	v = push(t, d, v)
	changed := picture(t, o.Tree)
	failed, done := 0, 0
	for free := 0; free <= 1200; free += 60 {
		script(t, dir, fmt.Sprintf(`cat /dev/zero >ballast 2>/dev/null || :; truncate -s -%dK ballast; sync -f .`, free))
		ok := rollbackOnFullDisk(t, d, v, o.Tree, base, changed)
		must(t, os.Remove(filepath.Join(dir, "ballast")))
		if !ok {
			failed++
			continue
		}
		done++
		v = show(t, d, v.Layers...)
		diff(t, changed, picture(t, o.Tree))
	}
	if failed == 0 || done == 0 {
		t.Errorf("%d rollbacks failed and %d were done: the test shows too little", failed, done)
	}
	must(t, d.Close())
	d, err = fallback.Open(t.Context(), o)
	must(t, err)
	diff(t, changed, picture(t, o.Tree))
	show(t, d)
	diff(t, base, picture(t, o.Tree))
	must(t, d.Close())
}

// rollbackOnFullDisk says whether it was done.
func rollbackOnFullDisk(t *testing.T, d *fallback.Driver, v snapshot.View, tree string, base, changed treecmp.Picture) bool {
	t.Helper()
	if dirty(t, d, v) {
		t.Fatal("dirty after nothing was done")
	}
	_, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	if err != nil {
		wantCode(t, err, snapshot.CodeNoSpace)
		diff(t, changed, picture(t, tree))
		return false
	}
	diff(t, base, picture(t, tree))
	return true
}

// TestOutOfInodes: the same when it is inodes that have run out.
func TestOutOfInodes(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{Inodes: 600})
	script(t, tree, `mkdir d; for i in $(seq 100); do echo $i >d/$i; done`)
	v := show(t, d)
	base := picture(t, tree)
	script(t, tree, `rm -r d; mkdir ../eaten; i=0; while echo >../eaten/$i 2>/dev/null; do i=$((i+1)); done; rm ../eaten/1*`)
	script(t, tree, `while echo >../eaten/x$i 2>/dev/null; do i=$((i+1)); done; rm ../eaten/[2-5]`)
	if !dirty(t, d, v) {
		t.Fatal("not dirty")
	}
	changed := picture(t, tree)
	_, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	wantCode(t, err, snapshot.CodeNoSpace)
	diff(t, changed, picture(t, tree))
	must(t, os.RemoveAll(filepath.Join(tree, "../eaten")))
	show(t, d)
	diff(t, base, picture(t, tree))
}

// TestReflink proves by disk use that copies share blocks where they can: a
// baseline and a rollback of 200 MiB on a filesystem with 60 MiB free.
func TestReflink(t *testing.T) {
	for _, fs := range []string{"btrfs", "xfs"} {
		t.Run(fs, func(t *testing.T) { reflink(t, fs) })
	}
}

func reflink(t *testing.T, fs string) {
	const big = 200 << 20
	d, tree, state := onImage(t, testns.ImageOptions{Type: fs, Size: 512 << 20})
	script(t, tree, `head -c 200M /dev/urandom >big; echo small >small; sync -f .`)
	before := used(t, tree)
	v := show(t, d)
	must(t, d.Sync(t.Context()))
	if grown := used(t, tree) - before; grown > big/4 {
		t.Errorf("a baseline of %d bytes took %d", big, grown)
	}
	base := picture(t, tree)
	script(t, tree, `printf changed | dd of=big conv=notrunc bs=1 seek=1000000 status=none; rm small`)
	v = push(t, d, v)
	show(t, d)
	must(t, d.Sync(t.Context()))
	diff(t, base, picture(t, tree))
	if grown := used(t, tree) - before; grown > big/4 {
		t.Errorf("three states of %d bytes took %d", big, grown)
	}
	show(t, d, v.Layers...)
	if _, err := os.Stat(state); err != nil {
		t.Fatal(err)
	}
}

// used is what the filesystem has given out, in bytes.
func used(t *testing.T, path string) int64 {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, errors.Join(unix.Syncfs(fd), unix.Close(fd)))
	var st unix.Statfs_t
	must(t, unix.Statfs(path, &st))
	return int64(st.Blocks-st.Bfree) * st.Bsize
}
