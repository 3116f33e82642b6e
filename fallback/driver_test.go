package fallback_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// TestUnchangedIsUntouched: a restore leaves what did not change alone, inode
// and change time too.
func TestUnchangedIsUntouched(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{})
	script(t, tree, `mkdir -p d/e other; for i in 1 2 3; do echo $i >d/$i; echo $i >d/e/$i; echo $i >other/$i; done; ln d/1 d/one`)
	v := show(t, d)
	times := func() string {
		out, err := exec.Command("find", tree, "-name", "[123]", "-printf", `%i %C@ %P\n`).Output()
		must(t, err)
		var keep []string
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "d/3") {
				keep = append(keep, line)
			}
		}
		return strings.Join(keep, "")
	}
	before := times()
	script(t, tree, `echo changed >d/3; echo new >other/new; echo again >d/e/n; rm d/e/n`)
	push(t, d, v)
	show(t, d)
	if after := times(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestLate: what is written between the look and the rollback is not lost: it
// is in the old open layer, and Show says so.
func TestLate(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{})
	script(t, tree, `echo 1 >f; echo 1 >g`)
	v := show(t, d)
	base := picture(t, tree)
	script(t, tree, `echo 2 >f`)
	v = push(t, d, v)
	dirty(t, d, v)
	script(t, tree, `echo late >>f; echo late >h`)
	tr, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	must(t, err)
	if !tr.Late {
		t.Error("Show does not say that somebody wrote late")
	}
	diff(t, base, picture(t, tree))
	show(t, d, append(v.Layers, v.Open)...)
	for name, want := range map[string]string{"f": "2\nlate\n", "h": "late\n"} {
		if b, err := os.ReadFile(filepath.Join(tree, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

// TestLastMoment: a write that comes between the check and the rename is found
// in what was taken out, and the restore begins again.
func TestLastMoment(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{})
	script(t, tree, `echo 1 >f`)
	v := show(t, d)
	script(t, tree, `echo 2 >f`)
	v = push(t, d, v)
	once := false
	restore := crash.SetHook(func(name string) {
		if name == "fallback.apply.op" && !once {
			once = true
			script(t, tree, `echo last moment >>f`)
		}
	})
	defer restore()
	tr, err := d.Show(t.Context(), snapshot.View{Open: snapshot.NewLayerID()})
	must(t, err)
	if !tr.Late || !once {
		t.Errorf("late %v, written %v", tr.Late, once)
	}
	show(t, d, append(v.Layers, v.Open)...)
	if b, err := os.ReadFile(filepath.Join(tree, "f")); err != nil || string(b) != "2\nlast moment\n" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestReaders: who reads by path during rollbacks and redos sees the old file
// or the new one, whole, and always one of them.
func TestReaders(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{})
	a, b := bytes.Repeat([]byte("a"), 300<<10), bytes.Repeat([]byte("b"), 200<<10)
	file := filepath.Join(tree, "f")
	must(t, os.WriteFile(file, a, 0o644))
	v := show(t, d)
	must(t, os.WriteFile(file, b, 0o644))
	v = push(t, d, v)
	stop, done := make(chan struct{}), make(chan error)
	var reads [2]int
	go func() { done <- readers(file, [2][]byte{a, b}, &reads, stop) }()
	for range 50 {
		show(t, d)
		show(t, d, v.Layers...)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if reads[0] == 0 || reads[1] == 0 {
		t.Errorf("%v reads: the test shows too little", reads)
	}
}

// readers reads the file until stop is closed.
func readers(file string, want [2][]byte, reads *[2]int, stop chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		got, err := os.ReadFile(file)
		switch {
		case err != nil:
			return err
		case bytes.Equal(got, want[0]):
			reads[0]++
		case bytes.Equal(got, want[1]):
			reads[1]++
		default:
			return fmt.Errorf("%d bytes that are neither the old nor the new file", len(got))
		}
	}
}

// TestMapping: a process that goes on writing through a mapping which it had
// written to before the capture is seen after it.
func TestMapping(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{})
	file := filepath.Join(tree, "f")
	must(t, os.WriteFile(file, make([]byte, 8192), 0o644))
	v := show(t, d)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	must(t, err)
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	for i := range 20 {
		m[100] = byte(i + 1)
		if !dirty(t, d, v) {
			t.Fatalf("write %d through a mapping was not seen", i)
		}
		v = show(t, d, append(v.Layers[:len(v.Layers):len(v.Layers)], v.Open)...)
	}
	must(t, errors.Join(unix.Munmap(m), f.Close()))
}

// TestDiscardFrees: what only discarded layers had is given back; what others
// use stays.
func TestDiscardFrees(t *testing.T) {
	dir := testns.NewImage(t, testns.ImageOptions{Size: 256 << 20}).Dir
	o := fallback.Options{Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state")}
	must(t, os.Mkdir(o.Tree, 0o755))
	script(t, o.Tree, `echo base >f; head -c 100K /dev/urandom >g`)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v := show(t, d)
	before := used(t, dir)
	script(t, o.Tree, `head -c 20M /dev/urandom >big; for i in $(seq 300); do head -c 20K /dev/urandom >s$i; done; cp g h; mv g g2`)
	v = push(t, d, v)
	layer := v.Layers[0]
	u, err := d.Usage(t.Context(), layer)
	must(t, err)
	if u.Bytes < 25<<20 || u.Bytes > 28<<20 || u.Inodes < 300 {
		t.Errorf("usage of 20 MiB and 300 times 20 KiB: %+v", u)
	}
	if err := d.Discard(t.Context(), layer); err == nil {
		t.Error("a layer that the tree shows was discarded")
	}
	v = show(t, d)
	must(t, d.Discard(t.Context(), layer))
	must(t, d.Close())
	if grown := used(t, dir) - before; grown > 1<<20 {
		t.Errorf("%d bytes are left of a layer that was discarded", grown)
	}
	d, err = fallback.Open(t.Context(), o)
	must(t, err)
	script(t, o.Tree, `rm f g`)
	push(t, d, v)
	show(t, d)
	if b, err := os.ReadFile(filepath.Join(o.Tree, "f")); err != nil || string(b) != "base\n" {
		t.Errorf("%q, %v", b, err)
	}
	must(t, d.Close())
}

// TestProgress: long work is told of, its phases in turn.
func TestProgress(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, `mkdir tree; for i in $(seq 3000); do echo $i >tree/$i; done`)
	var seen []fallback.Progress
	d, err := fallback.Open(t.Context(), fallback.Options{
		Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state"),
		Progress: func(p fallback.Progress) { seen = append(seen, p) },
	})
	must(t, err)
	v := show(t, d)
	script(t, dir, `rm tree/1*`)
	push(t, d, v)
	show(t, d)
	phases := map[string]fallback.Progress{}
	for _, p := range seen {
		phases[p.Phase] = p
	}
	if p := phases["copy"]; p.Files == 0 || p.TotalFiles < p.Files {
		t.Errorf("copy: %+v", p)
	}
	if p := phases["restore"]; p.Files < 1000 || p.TotalFiles != p.Files || p.Bytes == 0 {
		t.Errorf("restore: %+v", p)
	}
	must(t, d.Close())
}

// TestProbe tries a real tree, one whose copy does not fit, and the host alone.
func TestProbe(t *testing.T) {
	dir := testns.NewImage(t, testns.ImageOptions{}).Dir
	tree, state := filepath.Join(dir, "tree"), filepath.Join(dir, "state")
	must(t, os.Mkdir(tree, 0o755))
	script(t, tree, `head -c 10M /dev/urandom >f`)
	before := picture(t, tree)
	if ok, why := snapshot.Usable(fallback.Probe(tree, state)); !ok {
		t.Error(why)
	}
	diff(t, before, picture(t, tree))
	script(t, dir, `mount --bind tree tree && mount -o remount,bind,ro tree`)
	if ok, why := snapshot.Usable(fallback.Probe(tree, state)); ok || !strings.Contains(why, "read-only") {
		t.Errorf("read-only: usable %v: %s", ok, why)
	}
	script(t, dir, `umount tree`)
	script(t, tree, `head -c 30M /dev/urandom >g`)
	if ok, why := snapshot.Usable(fallback.Probe(tree, state)); ok || !strings.Contains(why, "40.0 MiB") {
		t.Errorf("usable %v: %s", ok, why)
	}
	if ok, why := snapshot.Usable(fallback.Probe("", state)); !ok {
		t.Error(why)
	}
	if ok, why := snapshot.Usable(fallback.Probe(tree, filepath.Join(tree, "state"))); ok {
		t.Error("a state in the tree is usable: ", why)
	}
	left, err := os.ReadDir(dir)
	must(t, err)
	if len(left) != 2 { // lost+found and the tree
		t.Errorf("left behind: %v", left)
	}
}

// TestDamage: a file of the driver's that does not make sense is named and
// left alone.
func TestDamage(t *testing.T) {
	dir := t.TempDir()
	o := fallback.Options{Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state")}
	script(t, dir, `mkdir tree; echo f >tree/f`)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v := show(t, d)
	script(t, dir, `echo g >tree/f`)
	push(t, d, v)
	must(t, d.Close())
	for file, offset := range map[string]int64{"index": 40, "log": 40} {
		path := filepath.Join(o.State, file)
		good, err := os.ReadFile(path)
		must(t, err)
		bad := append([]byte(nil), good...)
		bad[offset] ^= 0x55
		must(t, os.WriteFile(path, bad, 0o600))
		if _, err := fallback.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("damaged %s: %v", file, err)
		}
		bad = append([]byte("deployx copy index 9\n"), good[21:]...)
		must(t, os.WriteFile(path, bad, 0o600))
		_, err = fallback.Open(t.Context(), o)
		wantCode(t, err, snapshot.CodeUnsupported, path)
		if now, err := os.ReadFile(path); err != nil || string(now) != string(bad) {
			t.Errorf("%s was touched", file)
		}
		must(t, os.WriteFile(path, append(good, "torn"...), 0o600))
		if file == "log" { // a torn end was promised to nobody
			d, err := fallback.Open(t.Context(), o)
			must(t, err)
			must(t, d.Close())
		}
		must(t, os.WriteFile(path, good, 0o600))
	}
}

// TestTwoDrivers: two open on one state, as two processes are, each sees what
// the other has done; also when the index has been written anew between.
func TestTwoDrivers(t *testing.T) {
	for name, how := range map[string]func(fallback.Options) fallback.Options{
		"log": func(o fallback.Options) fallback.Options { return o }, "index": fallback.Options.Old,
	} {
		t.Run(name, func(t *testing.T) { twoDrivers(t, how) })
	}
}

func twoDrivers(t *testing.T, how func(fallback.Options) fallback.Options) {
	dir := t.TempDir()
	script(t, dir, `mkdir tree; for i in 1 2 3 4; do echo $i >tree/$i; done`)
	tree := filepath.Join(dir, "tree")
	var ds [2]*fallback.Driver
	for i := range ds {
		d, err := fallback.Open(t.Context(), how(fallback.Options{Tree: tree, State: filepath.Join(dir, "state")}))
		must(t, err)
		ds[i] = d
	}
	base := picture(t, tree)
	v := show(t, ds[0])
	for i := range 6 {
		d := ds[(i+1)%2]
		shown, err := d.Shown(t.Context())
		must(t, err)
		if shown != v.Open {
			t.Fatalf("step %d: shown %q, want %q", i, shown, v.Open)
		}
		script(t, tree, fmt.Sprintf(`echo %d >>1; rm -f %d; echo new >n%d`, i, i, i))
		if !dirty(t, ds[i%2], v) {
			t.Fatal("not dirty")
		}
		v = push(t, d, v)
		n := 0
		must(t, ds[i%2].Changes(t.Context(), nil, v.Layers, func(snapshot.Change) error { n++; return nil }))
		if n < 2 {
			t.Errorf("step %d: %d changes", i, n)
		}
	}
	changed := picture(t, tree)
	show(t, ds[1])
	diff(t, base, picture(t, tree))
	show(t, ds[0], v.Layers...)
	diff(t, changed, picture(t, tree))
	must(t, ds[1].Hide(t.Context()))
	diff(t, base, picture(t, tree))
	must(t, errors.Join(ds[0].Close(), ds[1].Close()))
}

// TestRedoAfterDrift: what others did to base while the tree was nobody's is
// kept by a redo that has nothing to do with it, and refuses one that has.
func TestRedoAfterDrift(t *testing.T) {
	d, tree, _ := onImage(t, testns.ImageOptions{})
	script(t, tree, `mkdir d; echo 1 >d/f; echo 1 >d/g`)
	v := show(t, d)
	script(t, tree, `echo layer >d/f; echo n >d/new`)
	v = push(t, d, v)
	must(t, d.Hide(t.Context()))
	script(t, tree, `echo drift >d/g; echo drift >d/h; echo drift >top`)
	show(t, d, v.Layers...)
	for name, want := range map[string]string{"d/f": "layer\n", "d/new": "n\n", "d/g": "drift\n", "d/h": "drift\n", "top": "drift\n"} {
		if b, err := os.ReadFile(filepath.Join(tree, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	must(t, d.Hide(t.Context()))
	script(t, tree, `echo drift >d/f`)
	before := picture(t, tree)
	_, err := d.Show(t.Context(), snapshot.View{Layers: v.Layers, Open: snapshot.NewLayerID()})
	wantCode(t, err, snapshot.CodeDriftConflict, "d/f")
	diff(t, before, picture(t, tree))
}
