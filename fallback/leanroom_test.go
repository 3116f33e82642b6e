package fallback_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// onEach runs a test on each kind of filesystem; copies tells that a file is not to be
// had by reflink there.
func onEach(t *testing.T, f func(t *testing.T, dir string, copies bool)) {
	for name, o := range map[string]testns.ImageOptions{
		"ext4": {Type: "ext4"}, "xfs": {Type: "xfs"}, "btrfs": {Type: "btrfs"},
		"xfs without reflink": {Type: "xfs", Mkfs: []string{"-m", "reflink=0"}},
	} {
		o.Size = 320 << 20
		t.Run(name, func(t *testing.T) { f(t, testns.NewImage(t, o).Dir, o.Type == "ext4" || o.Mkfs != nil) })
	}
}

const (
	leanBase   = `mkdir -p tree/d; cd tree; for i in $(seq 40); do head -c ${i}K /dev/urandom >d/$i; done; head -c 30M /dev/urandom >large; ln -s d l; echo same >same`
	leanChange = `for i in $(seq 30); do head -c ${i}K /dev/urandom >d/$i; done; head -c 30M /dev/urandom >large; rm l d/40; echo new >new`
)

// leanDisk shows a tree, changes most of it, and fills the disk but for room.
func leanDisk(t *testing.T, dir string, o fallback.Options, room string) (d *fallback.Driver, v snapshot.View, base, changed treecmp.Picture) {
	t.Helper()
	script(t, dir, leanBase)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v = show(t, d)
	base = picture(t, o.Tree)
	script(t, o.Tree, leanChange)
	v = push(t, d, v)
	changed = picture(t, o.Tree)
	script(t, dir, `head -c 400M /dev/zero >ballast 2>/dev/null || :; sync -f .; truncate -s -`+room+` ballast; sync -f .`)
	return d, v, base, changed
}

// TestLeanRoomGoes: between the two parts of a restore others take the room that the
// first part has made. The error says that it goes on; a driver that is opened on the
// full disk says so again; and once there is room the next one ends it.
func TestLeanRoomGoes(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, _ bool) {
		o := fallback.Options{Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state")}.Lean()
		d, v, base, changed := leanDisk(t, dir, o, "2M")
		to := snapshot.View{Open: snapshot.NewLayerID()}
		off := crash.SetHook(func(at string) {
			if at == "fallback.lean.emptied" {
				script(t, dir, `cat /dev/zero >more 2>/dev/null || :; sync -f . || :`)
			}
		})
		_, err := d.Show(t.Context(), to)
		off()
		stopped(t, err)
		must(t, d.Close())
		if _, err := os.Lstat(filepath.Join(o.Tree, "large")); !os.IsNotExist(err) {
			t.Errorf("the first part has not taken out what goes: %v", err)
		}
		_, err = fallback.Open(t.Context(), o)
		stopped(t, err)
		must(t, os.Remove(filepath.Join(dir, "more")))
		must(t, os.Remove(filepath.Join(dir, "ballast")))
		d, err = fallback.Open(t.Context(), o)
		must(t, err)
		diff(t, base, picture(t, o.Tree))
		_, err = d.Show(t.Context(), to)
		must(t, err)
		diff(t, base, picture(t, o.Tree))
		show(t, d, v.Layers...)
		diff(t, changed, picture(t, o.Tree))
		must(t, d.Close())
	})
}

func stopped(t *testing.T, err error) {
	t.Helper()
	if err != nil && strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("the first part was done: %v", err)
	}
	wantCode(t, err, snapshot.CodeNoSpace, "what goes was removed first, and what comes is not there yet")
	if !snapshot.IsUnderway(err) {
		t.Errorf("not told to be under way: %v", err)
	}
}

// TestLeanReal: on a full disk a rollback and a redo whose files have no room beside
// what goes are done in two parts; where files are cloned they need none.
func TestLeanReal(t *testing.T) {
	onEach(t, func(t *testing.T, dir string, copies bool) {
		o := fallback.Options{Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state")}
		d, v, base, changed := leanDisk(t, dir, o, "4M")
		parts := 0
		defer crash.SetHook(func(at string) {
			if at == "fallback.lean.done" {
				parts++
			}
		})()
		_, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
		must(t, err)
		diff(t, base, picture(t, o.Tree))
		show(t, d, v.Layers...)
		diff(t, changed, picture(t, o.Tree))
		must(t, d.Close())
		if want := map[bool]int{true: 2, false: 0}[copies]; parts != want {
			t.Errorf("%d restores were done in two parts, want %d", parts, want)
		}
	})
}
