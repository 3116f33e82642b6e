package overlay

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deployx/internal/testns"
)

// TestGoBackMoved: a directory that was moved in the view which is taken back has its
// old name again where the way back ends before it is put down.
func TestGoBackMoved(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	sh(t, r.tree, "mkdir -p data/in; echo here > data/in/f")
	r.beforeSurprise(t.TempDir())
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	r.hook = func(at string) {
		if at == "overlay.back.cleared" { // the note cannot be written any more
			sh(t, r.d.layers, "for back in */back; do mkdir -p $back.tmp; done")
		}
	}
	r.surprise("kept", func() { sh(t, r.tree, "mv data data2; mv data2/in in") }).end(t)
	if len(said) != 1 || !strings.Contains(said[0], "is a directory") {
		t.Errorf("%q", said)
	}
	sh(t, r.tree, `[ "$(cat data/in/f)" = here ]; ! ls -a | grep deployx`)
}

// TestGoBackOverFull: a file that was written over in place, where there is not enough
// room for what it has become, stays as it was, and takes no more room than before.
func TestGoBackOverFull(t *testing.T) {
	testns.Need(t)
	dir := testns.NewImage(t, testns.ImageOptions{}).Dir
	r := newSwapRigIn(t, dir, Options{})
	sh(t, r.tree, "head -c 200000 /dev/zero | tr '\\0' A > db")
	r.beforeSurprise(t.TempDir())
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	full := false
	r.hook = func(at string) {
		if at == "overlay.back.carrying" && !full {
			full = true
			sh(t, dir, "head -c 300K /dev/zero > spare; while head -c 1M /dev/zero >> fill; do :; done 2> /dev/null; sync -f .; rm spare; sync -f .")
		}
	}
	p := r.surprise("kept", func() {
		sh(t, r.tree, "head -c 900000 /dev/zero | tr '\\0' B | dd of=db conv=notrunc bs=100k status=none")
	})
	if len(said) != 1 || !strings.Contains(said[0], `"db" (`) || !strings.Contains(said[0], "no space left") {
		t.Errorf("%q", said)
	}
	sh(t, dir, "rm fill")
	p.end(t)
	sh(t, r.tree, `[ "$(tr -d A < db | wc -c) $(stat -c %s db)" = "0 200000" ]; sync db; [ $(stat -c %b db) -lt 500 ]`)
	sh(t, r.d.layers, `[ "$(tr -d B < $(echo aside/*/u/app/db) | wc -c) $(stat -c %s aside/*/u/app/db)" = "0 900000" ]`)
	if err := r.d.Close(); err != nil {
		t.Error(err)
	}
}

// TestGoBackOpened: who opens a file of the old view for writing while others are being
// carried keeps it in the tree.
func TestGoBackOpened(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	r.beforeSurprise(t.TempDir())
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	var late *player
	r.hook = func(at string) {
		if at == "overlay.back.carrying" && late == nil {
			late = play(t, "surprised-d/log", r.tree)
			time.Sleep(2 * time.Second) // it takes this long
		}
	}
	r.surprise("kept", func() { sh(t, r.tree, "echo new > log.new; mv log.new d/log") }).end(t)
	if said := late.end(t); said != "ok" {
		t.Error(said)
	}
	if len(said) != 1 || !strings.HasSuffix(said[0], `: "d/log" (changed in both views)`) {
		t.Errorf("%q", said)
	}
	sh(t, r.tree, `[ "$(cat d/log)" = "1
1
surprised" ]`)
}

// TestGoBackTimes: a directory that was made has the time that it had, whatever was
// carried into it.
func TestGoBackTimes(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	sh(t, r.tree, "touch turn")
	r.beforeSurprise(t.TempDir())
	r.d.OnWait(func(s string) { t.Error(s) })
	r.surprise("kept", func() {
		sh(t, r.tree, `mkdir -p new/er; echo f > new/er/f; touch -d @7 new/er; touch -d @8 new
			rm turn; mkdir turn; echo in > turn/in; touch -d @9 turn`)
	}).end(t)
	sh(t, r.tree, `[ "$(stat -c %Y new new/er turn | xargs)" = "8 7 9" ]`)
}

// TestGoBackHoles: files have the holes that they had.
func TestGoBackHoles(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	sh(t, r.tree, "echo 1 > grown; head -c 8M /dev/zero | tr '\\0' z > dug")
	r.beforeSurprise(t.TempDir())
	r.d.OnWait(func(s string) { t.Error(s) })
	r.surprise("kept", func() {
		sh(t, r.tree, `truncate -s 20M grown; echo end >> grown; fallocate -p -o 1M -l 6M dug; truncate -s 30M dug; echo end >> dug`)
	}).end(t)
	sh(t, r.tree, `[ $(stat -c %s grown) = $((20 * 1024 * 1024 + 4)) ]; [ "$(tr -d '\0' < grown)" = "1
end" ]
		[ $(stat -c %s dug) = $((30 * 1024 * 1024 + 4)) ]; [ "$(tr -d '\0' < dug | wc -c)" = $((2 * 1024 * 1024 + 4)) ]; [ "$(tail -c 4 dug)" = end ]
		cmp -n 1048576 dug <(head -c 1M /dev/zero | tr '\0' z)
		sync grown dug; [ $(stat -c %b grown) -lt 256 ]; [ $(stat -c %b dug) -lt 4500 ]`)
}

// TestGoBackUsed: killed when the old view was shown again, and booted after it was used
// for long: what was written to it since is there, and so is what the other one took.
func TestGoBackUsed(t *testing.T) {
	testns.Need(t)
	for _, at := range []string{"overlay.back.shown:1", "overlay.back.noted:1", "overlay.back.settled:1"} {
		t.Run(at, func(t *testing.T) { usedSince(t, at) })
	}
}

func usedSince(t *testing.T, at string) {
	dir := t.TempDir()
	sh(t, dir, "mkdir rig plain")
	backChild(t, dir, at)
	r := killedRig(t, dir)
	defer r.unmount(dir)
	plain := filepath.Join(dir, "plain")
	sh(t, r.tree, "until grep -q surprised kept; do sleep 0.01; done") // he ends with who was killed
	const since = "seq 1000 >> log; echo s > since"
	sh(t, r.tree, since)
	if at != "overlay.back.shown:1" {
		sh(t, plain, since) // the new view is shown, or all has been carried
	} else {
		sh(t, plain, "(echo 1; seq 1000; echo 2; echo 3) > log; echo s > since")
	}
	r.unmount(dir)
	for range 2 {
		r.reopen(dir)
		r.d.OnWait(func(s string) { t.Error(s) })
		r.show()
		sameTrees(t, plain, r.tree)
		if err := r.d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestGoBackRetried: where the old view cannot be shown after a boot, nothing is given
// up, and it is tried again.
func TestGoBackRetried(t *testing.T) {
	testns.Need(t)
	dir := t.TempDir()
	sh(t, dir, "mkdir rig plain")
	backChild(t, dir, "overlay.back.carrying:5")
	r := killedRig(t, dir)
	defer r.unmount(dir)
	sh(t, r.tree, "until grep -q surprised kept; do sleep 0.01; done") // he ends with who was killed
	r.unmount(dir)
	r.reopen(dir)
	r.d.OnWait(func(s string) { t.Error(s) })
	note, err := r.d.readBack(r.v.Open)
	if err != nil {
		t.Fatal(err)
	}
	below, err := r.d.standsOn(note.To)
	if err != nil {
		t.Fatal(err)
	}
	gone := below[0].dir
	if err := os.Rename(gone, gone+".gone"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.d.Show(context.Background(), r.v); err == nil {
		t.Error("a view was shown that cannot be")
	}
	if err := os.Rename(gone+".gone", gone); err != nil {
		t.Fatal(err)
	}
	r.show()
	sameTrees(t, filepath.Join(dir, "plain"), r.tree)
	if err := r.d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(r.d.layers, "aside", string(r.v.Open))); err == nil {
		t.Error("it was put aside")
	}
}
