package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

func init() { //nolint:gochecknoinits // roles are looked up before any test runs
	for _, name := range []string{"log", "d/log", "kept"} {
		roles["surprised-"+name] = surprisedRole(name)
		prepare["surprised-"+name] = func(tree string) error {
			return leak(os.OpenFile(filepath.Join(tree, name), os.O_WRONLY|os.O_APPEND, 0))
		}
	}
}

// surprisedRole has a file open, and writes a line to it when it is told to stop.
func surprisedRole(name string) func(tree string, stop <-chan struct{}) string {
	return func(_ string, stop <-chan struct{}) string {
		<-stop
		if _, err := fmt.Fprintln(leaked[0], "surprised"); err != nil {
			return name + ": " + err.Error()
		}
		return "ok"
	}
}

// surprise has somebody open a file just before each swap, when it has been looked
// for such, and calls meanwhile when the new view is shown.
func (r *swapRig) surprise(name string, meanwhile func()) (p *player) {
	r.t.Helper()
	r.d.freezePatience = 20 * time.Millisecond
	defer func() { r.d.freezePatience = freezePatience }()
	defer crash.SetHook(func(at string) {
		switch at {
		case "overlay.built":
			p = play(r.t, "surprised-"+name, r.tree)
		case "overlay.swapped":
			meanwhile()
		}
		if r.hook != nil {
			r.hook(at)
		}
	})()
	next := snapshot.View{Layers: append(slices.Clone(r.v.Layers), r.v.Open), Open: snapshot.NewLayerID()}
	if b, err := json.Marshal(next); r.note != "" && errors.Join(err, os.WriteFile(r.note, b, 0o600)) != nil {
		r.t.Fatal("note")
	}
	if _, err := r.d.Show(context.Background(), next); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		r.t.Fatalf("a swap under a surprised writer: %v", err)
	}
	if open, err := r.d.Shown(context.Background()); err != nil || open != r.v.Open {
		r.t.Fatal("the old view did not come back", open, err)
	}
	if _, err := os.Lstat(r.d.dir(next.Open, "")); err == nil {
		r.t.Error("the new layer is still there")
	}
	return p
}

// writeOld appends by a descriptor that was opened in the old view.
func (r *swapRig) writeOld(name, text string) {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.d.dir(r.v.Open, "s"), r.d.name, name), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString(text)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestGoBackAppender: who opened a file just before a swap and keeps it open has the
// old view come back. A writer that appends numbered lines by path to the same file
// meanwhile loses none, nor does he.
func TestGoBackAppender(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	for _, name := range []string{"log", "kept"} {
		t.Run(name, func(t *testing.T) {
			r := newSwapRig(t, Options{})
			sh(t, r.tree, "touch log")
			r.push()
			r.d.OnWait(func(s string) { t.Log(s) })
			p := play(t, "append", r.tree)
			for i := range 5 {
				r.write(i)
				q := r.surprise(name, func() {})
				if said := q.end(t); said != "ok" {
					t.Fatal(said)
				}
			}
			n, err := strconv.Atoi(strings.TrimPrefix(p.end(t), "ok "))
			if err != nil {
				t.Fatal(err)
			}
			r.sameLines(n, map[bool]int{true: 5}[name == "log"])
		})
	}
}

// sameLines: each number stands in the log once, and so many lines of the surprised. A
// line first written just when the view went may have been kept aside.
func (r *swapRig) sameLines(n, surprised int) {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.tree, "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	count := map[string]int{}
	for l := range strings.Lines(string(b)) {
		count[strings.TrimSuffix(l, "\n")]++
	}
	logs, err := filepath.Glob(filepath.Join(r.d.layers, "aside", "*", "u", "app", "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, name := range logs {
		b, err := os.ReadFile(name)
		if err != nil {
			r.t.Fatal(err)
		}
		for l := range strings.Lines(string(b)) {
			count[strings.TrimSuffix(l, "\n")] = max(1, count[strings.TrimSuffix(l, "\n")])
		}
	}
	for i := range n {
		if count[strconv.Itoa(i)] != 1 {
			r.t.Errorf("line %d of %d stands there %d times", i, n, count[strconv.Itoa(i)])
		}
	}
	if count["surprised"] != surprised || len(count) != n+min(surprised, 1) {
		r.t.Errorf("%d lines of the surprised writer, want %d; %d lines in all", count["surprised"], surprised, len(count))
	}
}

// backTree is what there is before, and backOps what others do by path while a view
// is shown that has to be taken back.
const backTree = `mkdir -p d/sub old/deep empty away x y; echo 1 > log; echo 1 > d/log; echo 1 > f; echo 12345 > over; echo 1 > conf
	for i in a b c; do echo $i > old/deep/$i; done; echo g > gone; ln -s f link; echo t > turns; mkdir turned; echo x > x/x; echo y > y/y; echo r > rotated
	echo n > names; ln names names2; setfattr -n user.k -v 1 f; echo m > mode; echo m2 > moded; echo o > $'odd\xff'; echo s > away/s; echo k > keep`

var backOps = []string{
	`echo 2 >> log; echo 2 >> d/log; echo 3 >> log`,
	`printf 99 | dd of=over bs=1 seek=1 conv=notrunc status=none`,
	`echo 22 > f`,
	`echo 2 > conf.new; mv conf.new conf`,
	`rm gone; rmdir empty; rm -r old/deep; rm link; ln -s elsewhere link`,
	`mkdir -p new/er; echo n > new/er/n; mkfifo new/p; ln -s n new/er/l; ln new/er/n new/twin; chmod 711 new`,
	`rm turns; mkdir turns; echo in > turns/in; rmdir turned; echo now > turned`,
	`mv x z; mv y x; mv z y; echo more > y/more; rm y/x`,
	`mv rotated rotated.1; echo fresh > rotated`,
	`echo 2 >> names`,
	`chmod 600 mode; setfattr -n user.k -v 2 f; chown 7:8 moded; chmod 750 d; chmod 701 .`,
	`mv away/s away.s; rmdir away; echo 2 >> $'odd\xff'; echo e > $'new\xff'`,
	`mv d/sub sub; mkdir d/sub; echo s > d/sub/s`,
	`chmod 600 keep; mv keep kept.keep`,
}

// TestGoBack: what others did by path while the new view was shown is there when the
// old one is shown again, as in a plain directory, each for itself and all together.
func TestGoBack(t *testing.T) {
	testns.Need(t)
	for _, o := range []Options{{}, {Plain: true}, {Old: true}} {
		if o.Old && !testns.Kernel(t, 6, 5) {
			continue // that was the old way
		}
		for _, ops := range append(slices.Clone(backOps), strings.Join(backOps, "\n")) {
			if testing.Short() && o != (Options{}) && !strings.Contains(ops, "\n") {
				continue
			}
			if o.Plain && strings.Contains(ops, "names") {
				ops = strings.ReplaceAll(ops, "echo 2 >> names", ":") // hard links come apart there
			}
			t.Run(fmt.Sprintf("plain %v old %v %.20s", o.Plain, o.Old, ops), func(t *testing.T) {
				r := newSwapRig(t, o)
				r.d.OnWait(func(s string) { t.Error(s) })
				plain := t.TempDir()
				r.beforeSurprise(plain)
				p := r.surprise("kept", func() { sh(t, r.tree, ops) })
				sh(t, plain, ops)
				if said := p.end(t); said != "ok" {
					t.Fatal(said)
				}
				sh(t, plain, "echo surprised >> kept")
				sameTrees(t, plain, r.tree)
				r.push() // and the next swap finds nothing in its way
				sameTrees(t, plain, r.tree)
			})
		}
	}
}

// beforeSurprise makes backTree, in a plain directory too: a part in the open layer.
func (r *swapRig) beforeSurprise(plain string) {
	sh(r.t, r.tree, backTree)
	r.push()
	sh(r.t, r.tree, "echo in this layer > this; echo 1 >> d/log; mkdir x/here")
	sh(r.t, plain, "cp -a "+r.tree+"/. .")
	time.Sleep(20 * time.Millisecond) // what is as young as the swap may be a surprised writer's
}

func sameTrees(t *testing.T, want, got string) {
	t.Helper()
	a, err := treecmp.Take(want)
	if err != nil {
		t.Fatal(err)
	}
	b, err := treecmp.Take(got)
	if err != nil {
		t.Fatal(err)
	}
	anyTime := func(int64) int64 { return 0 }
	if d := treecmp.Diff(a, b, treecmp.Options{AnyNlink: true, WantTime: anyTime, GotTime: anyTime}); len(d) > 0 {
		t.Errorf("not like a plain directory:\n%s", d)
	}
}

// TestGoBackBoth: what both have written to so that it cannot be told what is to
// become of it stays as the old view has it. It is named, and what the new one had
// is kept.
func TestGoBackBoth(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	r.beforeSurprise(t.TempDir())
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	p := r.surprise("log", func() {
		sh(t, r.tree, "echo new >> log; echo new > n; echo new >> f")
		r.writeOld("log", "old\n")
	})
	aside := filepath.Join(r.d.layers, "aside")
	if len(said) != 1 || !strings.Contains(said[0], aside) || !strings.HasSuffix(said[0], `: "log" (changed in both views)`) {
		t.Errorf("%q", said)
	}
	p.end(t)
	sh(t, r.tree, `[ "$(cat log)" = "1
old
surprised" ] && [ "$(cat n)" = new ] && [ "$(cat f)" = "1
new" ]`)
	sh(t, aside, `[ "$(cat */u/app/log)" = "1
new" ]`)
}

// TestGoBackSoon: what others append by path to the old view before all is carried
// stays, beside what they had appended to the new one.
func TestGoBackSoon(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	r.beforeSurprise(t.TempDir())
	r.d.OnWait(func(s string) { t.Error(s) })
	r.hook = func(at string) {
		if at == "overlay.back.shown" {
			sh(t, r.tree, "echo soon >> log; echo soon > soon")
		}
	}
	r.surprise("kept", func() { sh(t, r.tree, "echo new >> log") }).end(t)
	sh(t, r.tree, `[ "$(cat log)" = "1
soon
new" ] && [ "$(cat soon)" = soon ]`)
}

// TestSwapHides: where a surprised writer ends in time, and another has copied up the
// file before he wrote, the file is named, and where what he wrote is. One that he
// wrote to before is not.
func TestSwapHides(t *testing.T) {
	testns.Need(t)
	for _, plain := range []bool{false, true} {
		r := newSwapRig(t, Options{Plain: plain})
		r.beforeSurprise(t.TempDir())
		var said []string
		r.d.OnWait(func(s string) { said = append(said, s) })
		files := map[string]*os.File{}
		defer crash.SetHook(func(at string) {
			switch at {
			case "overlay.built":
				for _, name := range []string{"log", "f"} {
					f, err := os.OpenFile(filepath.Join(r.tree, name), os.O_WRONLY|os.O_APPEND, 0)
					if err != nil {
						t.Fatal(err)
					}
					files[name] = f
				}
			case "overlay.surprised":
				_, err := files["f"].WriteString("first\n")
				sh(t, r.tree, "sleep 0.02; echo new >> f; echo new >> log; sleep 0.02")
				_, e := files["log"].WriteString("hidden\n")
				if err := errors.Join(err, e, files["log"].Close(), files["f"].Close()); err != nil {
					t.Error(err)
				}
			}
		})()
		r.push()
		if len(said) != 1 || !strings.HasPrefix(said[0], `"log" was written to by`) {
			t.Fatalf("%q", said)
		}
		b, err := os.ReadFile(said[0][strings.LastIndexByte(said[0], ' ')+1:])
		if err != nil || string(b) != "1\nhidden\n" {
			t.Errorf("%q %v", b, err)
		}
		sh(t, r.tree, `[ "$(cat f)" = "1
first
new" ]`)
	}
}

// TestGoBackHeld: who has opened a file of the new view, too, keeps that from being
// frozen. What is there is carried, he is told of, and what he writes is kept.
func TestGoBackHeld(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	r.beforeSurprise(t.TempDir())
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	var late *os.File
	p := r.surprise("log", func() {
		var err error
		if late, err = os.OpenFile(filepath.Join(r.tree, "f"), os.O_WRONLY|os.O_APPEND, 0); err == nil {
			_, err = late.WriteString("new\n")
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	if len(said) != 1 || !strings.Contains(said[0], "still writes") {
		t.Errorf("%q", said)
	}
	if _, err := late.WriteString("late\n"); err != nil {
		t.Error(err)
	}
	if err := late.Close(); err != nil {
		t.Error(err)
	}
	p.end(t)
	sh(t, r.tree, `[ "$(cat f)" = "1
new" ]`)
	sh(t, r.d.layers, `[ "$(cat aside/*/u/app/f)" = "1
new
late" ]`)
}

// TestGoBackFull: where the way back fails, for a disk that is full for one, nothing
// that was written is given up.
func TestGoBackFull(t *testing.T) {
	testns.Need(t)
	r := newSwapRigIn(t, testns.NewImage(t, testns.ImageOptions{}).Dir, Options{})
	r.beforeSurprise(t.TempDir())
	var said []string
	r.d.OnWait(func(s string) { said = append(said, s) })
	p := r.surprise("log", func() {
		sh(t, r.tree, "echo new > fresh; echo 2 >> f; while head -c 1M /dev/zero >> fill; do :; done 2> /dev/null")
	})
	if len(said) != 1 || !strings.Contains(said[0], "no space left") {
		t.Errorf("%q", said)
	}
	sh(t, r.d.layers, `cd aside/*/u/app; [ "$(cat fresh)" = new ] && [ "$(cat f)" = "1
2" ] && [ "$(stat -c %s fill)" -gt 10000000 ]; rm fill`)
	p.end(t)
	sh(t, r.tree, "grep -q layer who; [ ! -e fill ]; ! ls -a | grep deployx")
	if err := r.d.Close(); err != nil {
		t.Error(err)
	}
}

const (
	envBackDir   = "DEPLOYX_TEST_BACK_DIR"
	envBackPoint = "DEPLOYX_TEST_BACK_POINT" // NAME:HIT; "" notes all points
)

// TestGoBackCrashes kills the process on the way back. Whoever shows the same view
// next, after a boot too, finishes it: the tree has what everybody wrote.
func TestGoBackCrashes(t *testing.T) {
	if dir := os.Getenv(envBackDir); dir != "" {
		playGoBack(t, dir)
		return
	}
	testns.Need(t)
	dir := t.TempDir()
	sh(t, dir, "mkdir rig plain")
	backChild(t, dir, "")
	b, err := os.ReadFile(filepath.Join(dir, "points"))
	if err != nil {
		t.Fatal(err)
	}
	hits := map[string]int{}
	for name := range strings.FieldsSeq(string(b)) {
		hits[name]++
	}
	if len(hits) < 11 {
		t.Fatal("too few points: ", hits)
	}
	for _, name := range slices.Sorted(maps.Keys(hits)) {
		n := hits[name]
		for _, hit := range slices.Compact([]int{1, (n + 1) / 2, n}) {
			if testing.Short() && hit != (n+1)/2 {
				continue
			}
			for _, boot := range []bool{false, true} {
				if boot && hit != (n+1)/2 {
					continue
				}
				t.Run(fmt.Sprintf("%s %d boot %v", name, hit, boot), func(t *testing.T) {
					dieGoingBack(t, fmt.Sprintf("%s:%d", name, hit), boot)
				})
			}
		}
	}
}

func backChild(t *testing.T, dir, point string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.count=1", "-test.run=^TestGoBackCrashes$")
	cmd.Env = append(os.Environ(), envBackDir+"="+dir, envBackPoint+"="+point)
	out, err := cmd.CombinedOutput()
	if killed := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL; killed != (point != "") { //nolint:forcetypeassert // on Linux it is
		t.Fatalf("child at %q: %v\n%s", point, err, out)
	}
}

func playGoBack(t *testing.T, dir string) {
	point := os.Getenv(envBackPoint)
	r := newSwapRigIn(t, filepath.Join(dir, "rig"), Options{})
	r.d.OnWait(func(s string) { t.Error(s) })
	r.beforeSurprise(filepath.Join(dir, "plain"))
	sh(t, filepath.Join(dir, "plain"), strings.Join(backOps, "\n")+"\necho surprised >> kept")
	hits := map[string]int{}
	dying := func(at string) {
		if !strings.HasPrefix(at, "overlay.back.") {
			return
		}
		if hits[at]++; point == "" {
			sh(t, dir, "echo "+at+" >> points")
		} else if point == fmt.Sprintf("%s:%d", at, hits[at]) {
			crashtest.Die(at)
		}
	}
	r.hook, r.note = dying, filepath.Join(dir, "view")
	r.surprise("kept", func() { sh(t, r.tree, strings.Join(backOps, "\n")) }).end(t)
}

// dieGoingBack looks at what a killed process has left.
func dieGoingBack(t *testing.T, point string, boot bool) {
	dir := t.TempDir()
	sh(t, dir, "mkdir rig plain")
	backChild(t, dir, point)
	r := killedRig(t, dir)
	defer r.unmount(dir)
	sh(t, r.tree, "until grep -q surprised kept; do sleep 0.01; done") // he ends with who was killed
	if boot {
		r.unmount(dir)
	}
	for range 2 {
		r.reopen(dir)
		r.d.OnWait(func(s string) { t.Error(s) })
		r.show()
		sameTrees(t, filepath.Join(dir, "plain"), r.tree)
		if err := r.d.Close(); err != nil {
			t.Error(err)
		}
	}
	r.push()
	sameTrees(t, filepath.Join(dir, "plain"), r.tree)
	if names, err := os.ReadDir(filepath.Join(dir, "rig", "state", "layers", "aside")); err != nil || len(names) > 0 {
		t.Error("put aside: ", names, err)
	}
	if err := r.d.Close(); err != nil {
		t.Error(err)
	}
}

// killedRig is the rig of a child that was killed.
func killedRig(t *testing.T, dir string) *swapRig {
	t.Helper()
	r := &swapRig{t: t, tree: filepath.Join(dir, "rig", "srv", "app")}
	b, err := os.ReadFile(filepath.Join(dir, "view"))
	if err == nil {
		err = json.Unmarshal(b, &r.v)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *swapRig) reopen(dir string) {
	r.t.Helper()
	var err error
	if r.d, err = New(Options{Tree: r.tree, State: filepath.Join(dir, "rig", "state")}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *swapRig) unmount(dir string) {
	for !sameMount(r.tree, dir) {
		if err := unmountTop(r.tree); err != nil {
			r.t.Fatal(err)
		}
	}
}
