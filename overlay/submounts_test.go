package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/mounts"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// everyWay runs a test in both layouts and in the ways of old kernels, below a
// private and a shared mount. An old kernel has no other way to be kept from.
func everyWay(t *testing.T, f func(t *testing.T, r *mountRig)) {
	testns.Need(t)
	for _, c := range []struct {
		o      Options
		shared bool
	}{{Options{}, true}, {Options{}, false}, {Options{Plain: true}, true}, {Options{Old: true}, true}, {Options{Old: true, Plain: true}, false}} {
		if c.o.Old && !testns.Kernel(t, 6, 5) {
			continue
		}
		t.Run(fmt.Sprintf("plain=%v,old=%v,shared=%v", c.o.Plain, c.o.Old, c.shared), func(t *testing.T) {
			f(t, newMountRig(t, c.o, c.shared))
		})
	}
}

// A mountRig is a tree on a mount of its own, with directories to mount on.
type mountRig struct {
	*swapRig
	dir string
}

func newMountRig(t *testing.T, o Options, shared bool) *mountRig {
	t.Helper()
	dir := t.TempDir()
	sh(t, dir, "mount --bind . .; mkdir other; echo other > other/f; mkdir -p srv/app/{data/deep,conf,late}; echo under > srv/app/data/under; echo c > srv/app/conf/c; echo w > srv/app/who")
	t.Cleanup(func() {
		left, err := testns.MountsBelow(dir)
		if err != nil {
			t.Error(err)
		}
		for _, at := range slices.Backward(left) {
			if at != dir {
				t.Error("left mounted:", at)
			}
		}
		for range 50 { // a handle may be closed in the background still
			if unix.Unmount(dir, unix.MNT_DETACH) != nil {
				break
			}
		}
	})
	if shared {
		sh(t, dir, "mount --make-shared .")
	} else {
		sh(t, dir, "mount --make-private .")
	}
	r := &mountRig{&swapRig{t: t, tree: filepath.Join(dir, "srv", "app")}, dir}
	o.Tree, o.State = r.tree, filepath.Join(dir, "state")
	var err error
	if r.d, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 2 {
			if err := r.d.Hide(context.Background()); err != nil {
				t.Error(err)
			}
			sh(t, dir, "for m in $(findmnt -rno TARGET | grep ^$PWD/srv/app/ | tac); do umount $m; done")
		}
		if err := r.d.Close(); err != nil {
			t.Error(err)
		}
	})
	r.v.Open = snapshot.NewLayerID()
	return r
}

// below lists what is mounted below the tree as it is seen, with types.
func (r *mountRig) below() string {
	r.t.Helper()
	list, err := mounts.Below(r.tree)
	if err != nil {
		r.t.Fatal(err)
	}
	var all []string
	for _, m := range list {
		all = append(all, strings.TrimPrefix(m.Mountpoint, r.tree+"/"))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// everywhere counts the mounts of the whole namespace at the tree's paths, seen
// or hidden.
func (r *mountRig) everywhere() (n int) {
	r.t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.Count(string(b), " "+r.tree+"/")
}

func (r *mountRig) want(what, below string) {
	r.t.Helper()
	if got := r.below(); got != below {
		r.t.Errorf("%s: mounted below the tree: %q, want %q", what, got, below)
	}
	want := 0
	if below != "" {
		want = len(strings.Fields(below))
	}
	if n := r.everywhere(); n != want {
		out, _ := exec.Command("findmnt", "-A", "-o", "ID,PARENT,TARGET,FSTYPE,SOURCE,PROPAGATION").Output()
		r.t.Errorf("%s: %d mounts at the tree's paths, want %d\n%s", what, n, want, out)
	}
}

// mountAll mounts what a tree may have below it: a filesystem, another on top of
// a directory in it, a bind mount of a directory and of a file.
func (r *mountRig) mountAll() {
	r.t.Helper()
	sh(r.t, r.tree, `mount -t tmpfs one data; echo in > data/in; mkdir data/two; mount -t tmpfs two data/two; echo two > data/two/f
mount --bind `+r.dir+`/other late; mount --bind `+r.dir+`/other/f conf/c`)
}

const allBelow = "conf/c data data/two late"

func (r *mountRig) check() {
	r.t.Helper()
	sh(r.t, r.tree, `test $(cat data/in) = in; test $(cat data/two/f) = two; test $(cat late/f) = other; test $(cat conf/c) = other; ! test -e data/under`)
}

// TestSubmounts: what is mounted below the tree before it is shown, and while it
// is, is carried from view to view and back to the plain directory, and nothing
// of it is left behind anywhere.
func TestSubmounts(t *testing.T) {
	everyWay(t, func(t *testing.T, r *mountRig) {
		r.mountAll()
		r.show()
		r.check()
		r.want("first show", allBelow)
		for i := range 3 {
			r.write(i)
			sh(t, r.tree, fmt.Sprintf("echo %d > data/n; echo %d > late/n", i, i))
			r.push()
			r.check()
			r.want("swap", allBelow)
		}
		sh(t, r.tree, "mkdir new; mount -t tmpfs new new; echo n > new/n; umount late")
		r.push()
		r.want("after mount and umount", "conf/c data data/two new")
		sh(t, r.tree, "test $(cat data/n) = 2; test $(cat new/n) = n; ! test -e late/f; umount new; mount --bind "+r.dir+"/other late; test $(cat late/n) = 2")
		r.v = snapshot.View{Open: snapshot.NewLayerID()}
		r.show()
		r.check()
		r.want("back to base", allBelow)
		if h, err := r.d.Holders(context.Background()); err != nil || len(h) > 0 {
			t.Error(h, err)
		}
		if err := r.d.Hide(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.check()
		r.want("hidden", allBelow)
		sh(t, r.tree, "umount data/two data late conf/c; test $(cat data/under) = under; test $(cat conf/c) = c")
		r.want("unmounted", "")
	})
}

// TestSubmountGone: a state that has nothing to mount it on is refused, by name,
// and the tree shows what it showed.
func TestSubmountGone(t *testing.T) {
	everyWay(t, func(t *testing.T, r *mountRig) {
		r.show()
		sh(t, r.tree, "mkdir made; rm -r late; touch late")
		r.push()
		for _, at := range []string{"made", "late"} {
			what := "mount -t tmpfs x made"
			if at == "late" {
				what = "mount --bind conf/c late" // a file, where base has a directory
				sh(t, r.dir, "touch file; mount --bind file srv/app/late")
			} else {
				sh(t, r.tree, what)
			}
			shown := r.v
			r.v = snapshot.View{Open: snapshot.NewLayerID()}
			_, err := r.d.Show(context.Background(), r.v)
			var e *snapshot.Error
			if !errors.As(err, &e) || e.Code != snapshot.CodeTreeBusy || len(e.Holders) != 1 || e.Holders[0].Path != filepath.Join(r.tree, at) {
				t.Errorf("%s: %v", at, err)
			}
			if open, err := r.d.Shown(context.Background()); err != nil || open != shown.Open {
				t.Error(open, err)
			}
			r.v = shown
			r.want("refused", at)
			sh(t, r.tree, "umount "+at)
		}
		r.v = snapshot.View{Open: snapshot.NewLayerID()}
		r.show()
	})
}

// TestSubmountStuck: one that cannot be carried holds the tree while it is there,
// and keeps a plain directory from being covered.
func TestSubmountStuck(t *testing.T) {
	everyWay(t, func(t *testing.T, r *mountRig) {
		for _, c := range [][3]string{
			{"mount -t tmpfs a data; mount -t tmpfs b data", "another is mounted over it", "umount data; umount data"},
			{"mount -t tmpfs a data; mkdir data/x; mount --make-unbindable data", "unbindable", "umount data"},
			{"mount -t tmpfs a data/deep; mount -t tmpfs b data", "deep", "umount data; umount data/deep"},
		} {
			sh(t, r.tree, c[0])
			_, err := r.d.Show(context.Background(), r.v)
			if snapshot.CodeOf(err) != snapshot.CodeTreeBusy || !strings.Contains(err.Error(), c[1]) {
				t.Errorf("first show: %s: %v", c[0], err)
			}
			sh(t, r.tree, c[2])
			r.show()
			sh(t, r.tree, c[0])
			h, err := r.d.Holders(context.Background())
			if err != nil || len(h) != 1 || !strings.Contains(h[0].How+h[0].Path, c[1]) {
				t.Errorf("%s: %v %v", c[0], h, err)
			}
			sh(t, r.tree, c[2])
			if err := r.d.Hide(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		sh(t, r.tree, "mount --bind conf late")
		if _, err := r.d.Show(context.Background(), r.v); err == nil || !strings.Contains(err.Error(), "a part of the tree") {
			t.Error(err)
		}
		sh(t, r.tree, "umount late")
		r.show()
		sh(t, r.tree, "mount --bind conf late")
		if h, err := r.d.Holders(context.Background()); err != nil || len(h) != 1 || !strings.Contains(h[0].How, "a part of the tree") {
			t.Error(h, err)
		}
		sh(t, r.tree, "umount late")
	})
}

// TestSubmountHolders: a directory in a mount below is a hold, a file and a
// socket there are none, and who has the file open goes on writing to it.
func TestSubmountHolders(t *testing.T) {
	testns.Need(t)
	r := newMountRig(t, Options{}, true)
	r.mountAll()
	r.show()
	hold := func(script string) (end func()) {
		t.Helper()
		cmd := exec.Command("bash", "-c", script+"; echo up; read x")
		cmd.Dir = r.dir
		in, out := testns.Start(t, cmd)
		testns.Line(t, out)
		return func() { in.Close(); cmd.Wait() } //nolint:errcheck // it ends as it likes
	}
	for _, c := range []struct {
		script string
		holds  bool
	}{
		{"cd srv/app/data", true},
		{"cd srv/app/data/two", true},
		{"exec 7<srv/app/late", true},
		{"exec 7>>srv/app/data/log", false},
		{"exec 7<srv/app/conf/c", false},
	} {
		end := hold(c.script)
		h, err := r.d.Holders(context.Background())
		if err != nil || (len(h) > 0) != c.holds {
			t.Errorf("%s: %v %v", c.script, h, err)
		}
		end()
	}
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l) //nolint:errcheck // a socket
	if err := unix.Bind(l, &unix.SockaddrUnix{Name: "/proc/self/cwd/s"}); err == nil {
		t.Log("bound elsewhere")
	}
	f, err := os.OpenFile(filepath.Join(r.tree, "data/log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // a test's
	r.push()
	if _, err := f.WriteString("line\n"); err != nil {
		t.Fatal(err)
	}
	sh(t, r.tree, "grep -q line data/log")
}

// TestSubmountRace: what is mounted and unmounted while the next view is put in
// place is so afterwards as well; what cannot be carried then keeps the old view.
func TestSubmountRace(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	r := newMountRig(t, Options{}, true)
	r.mountAll()
	r.show()
	if err := r.meanwhile("beneath", "mkdir data/three; mount -t tmpfs three data/three; umount late; mount -t tmpfs deep .; umount .; mount --bind conf/c who"); err != nil {
		t.Error(err)
	}
	r.want("raced", "conf/c data data/three data/two who")
	if r.meanwhile("beneath", "mount -t tmpfs stacked data") == nil {
		t.Error("a mount was lost")
	}
	r.want("refused", "conf/c data data data/three data/two who")
	sh(t, r.tree, "umount data")
	r.push()
	r.want("after", "conf/c data data/three data/two who")
}

// TestSubmountRaceOld: where the old view goes first, what is mounted since the next
// one was built keeps the old one, and is carried the next time.
func TestSubmountRaceOld(t *testing.T) {
	testns.Need(t)
	r := newMountRig(t, Options{Old: true}, true)
	r.mountAll()
	r.show()
	err := r.meanwhile("built", "mkdir data/three; mount -t tmpfs three data/three")
	if snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Errorf("a mount was lost: %v", err)
	}
	if open, err := r.d.Shown(context.Background()); err != nil || open != r.v.Open {
		t.Errorf("shown is %q (%v), want %q", open, err, r.v.Open)
	}
	r.want("refused", "conf/c data data/three data/two late")
	r.push()
	r.want("after", "conf/c data data/three data/two late")
	r.check()
}

// meanwhile pushes, and runs a command when the push comes to a point.
func (r *mountRig) meanwhile(point, cmd string) error {
	r.t.Helper()
	took := false
	restore := crash.SetHook(func(name string) {
		if name == "overlay."+point && !took {
			took = true
			sh(r.t, r.tree, cmd)
		}
	})
	defer restore()
	next := snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
	_, err := r.d.Show(context.Background(), next)
	if err == nil {
		r.v = next
	}
	if !took {
		r.t.Errorf("the push does not come to %q", point)
	}
	return err
}

// TestSubmountCrash: killed at any moment that matters, the mounts are all there
// when the tree is shown again, and once each when it is hidden.
func TestSubmountCrash(t *testing.T) {
	testns.Need(t)
	for _, o := range []Options{{}, {Plain: true}, {Old: true}} {
		if o.Old && !testns.Kernel(t, 6, 5) {
			continue // as everyWay
		}
		for _, point := range []string{"built", "covered", "beneath", "gap", "swapped", "frozen", "staged", "hiding", "uncovered"} {
			t.Run(fmt.Sprintf("%s,plain=%v,old=%v", point, o.Plain, o.Old), func(t *testing.T) {
				r := newMountRig(t, o, true)
				r.mountAll()
				died := r.dieAt("overlay."+point, func() { r.show() })
				r.show()
				r.check()
				died = r.dieAt("overlay."+point, func() { r.push() }) || died
				r.show()
				r.check()
				r.v = snapshot.View{Open: snapshot.NewLayerID()}
				r.show()
				died = r.dieAt("overlay."+point, func() {
					if err := r.d.Hide(context.Background()); err != nil {
						t.Error(err)
					}
				}) || died
				if err := r.d.Hide(context.Background()); err != nil {
					t.Fatal(err)
				}
				r.check()
				r.want("hidden", allBelow)
				t.Log("died:", died)
			})
		}
	}
}

// TestSubmountGapFails: where the old view has gone when the new one cannot be
// mounted, the old one comes back, with all that is mounted below it.
func TestSubmountGapFails(t *testing.T) {
	testns.Need(t)
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			r := newMountRig(t, Options{Old: true, Plain: plain}, true)
			r.mountAll()
			r.show()
			r.check()
			next := snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
			restore := crash.SetHook(func(name string) {
				switch name {
				case "overlay.gap":
					r.d.tree = filepath.Join(r.dir, "nowhere")
				case "overlay.failed":
					r.d.tree = r.tree
				}
			})
			_, err := r.d.Show(context.Background(), next)
			restore()
			r.d.tree = r.tree
			if !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
			if open, err := r.d.Shown(context.Background()); err != nil || open != r.v.Open {
				t.Errorf("shown is %q (%v), want %q", open, err, r.v.Open)
			}
			r.check()
			r.push()
			r.check()
		})
	}
}

// dieAt runs f until it comes to a point, and goes on with a new driver, as the
// next process would.
func (r *mountRig) dieAt(point string, f func()) (died bool) {
	r.t.Helper()
	type death struct{}
	restore := crash.SetHook(func(name string) {
		if r.hook != nil {
			r.hook(name)
		}
		if name == point {
			panic(death{})
		}
	})
	func() {
		defer func() {
			if x := recover(); x != nil && x != (death{}) {
				panic(x)
			} else {
				died = x != nil
			}
		}()
		f()
	}()
	restore()
	runtime.GC() // closes what a killed process would not have open any more: mounts, staged ones too
	r.d.gone.Wait()
	r.d.ready = ready{}
	old := r.d
	var err error
	if r.d, err = New(Options{Tree: r.tree, State: filepath.Join(r.dir, "state"), Plain: old.name == "", Old: !old.has.lowerFD}); err != nil {
		r.t.Fatal(err)
	}
	if err := old.below.close(); err != nil {
		r.t.Error(err)
	}
	return died
}

// TestProbeGap: where the kernel has no other way doctor tells how long a swap
// shows base.
func TestProbeGap(t *testing.T) {
	testns.Need(t)
	measured := regexp.MustCompile(`^false .*, here for \d+ µs \(invalid argument\)$`)
	for _, has := range []features{allFeatures(), {}} {
		dir := t.TempDir()
		p := prober{tree: dir, dir: filepath.Join(dir, "probe"), has: has}
		if err := os.Mkdir(p.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		p.run()
		told := ""
		for _, c := range p.checks {
			if c.Name == gapless {
				told = fmt.Sprintf("%v %s", c.OK, c.Detail)
			}
			if strings.HasPrefix(c.Name, "mounts below") && c.OK != (has.loadAny && testns.Kernel(t, 6, 15)) {
				t.Errorf("%+v", c)
			}
		}
		if measured.MatchString(told) == (has.beneath && testns.Kernel(t, 6, 5)) {
			t.Errorf("%q", told)
		}
		t.Log(told)
	}
}
