package overlay

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/snapshot"
)

// role is what a child process of these tests does, by DEPLOYX_TEST_ROLE: it
// works on the tree until its standard input ends, then prints what it saw.
var roles = map[string]func(tree string, stop <-chan struct{}) string{
	"read":   readRole,
	"append": appendRole(0),
	"slow":   appendRole(15 * time.Millisecond),
	"keep":   keepRole,
}

// prepare is done before a role says that it is ready.
var prepare = map[string]func(tree string) error{}

func playRole() {
	f, ok := roles[os.Getenv("DEPLOYX_TEST_ROLE")]
	if !ok {
		return
	}
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is the signal
		close(stop)
	}()
	if p := prepare[os.Getenv("DEPLOYX_TEST_ROLE")]; p != nil {
		if err := p(os.Getenv("DEPLOYX_TEST_TREE")); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fmt.Println("ready")
	fmt.Println(f(os.Getenv("DEPLOYX_TEST_TREE"), stop))
	os.Exit(0)
}

// player is such a process.
type player struct {
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

func play(t *testing.T, role, tree string) *player {
	t.Helper()
	p := &player{cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), "DEPLOYX_TEST_ROLE="+role, "DEPLOYX_TEST_TREE="+tree)
	p.cmd.Dir, p.cmd.Stderr = "/", os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in, p.out = in, bufio.NewReader(out)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() }) //nolint:errcheck // it may have ended
	if line, err := p.out.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatal(line, err)
	}
	return p
}

// end stops the process and returns what it has to say. What it had open is closed
// then.
func (p *player) end(t *testing.T) string {
	t.Helper()
	p.in.Close() //nolint:errcheck // it ends the role
	line, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// readRole opens, reads and lists in a tight loop. Nothing may fail, and base's
// content may never be seen.
func readRole(tree string, stop <-chan struct{}) string {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return "ok " + strconv.Itoa(n)
		default:
		}
		b, err := os.ReadFile(filepath.Join(tree, "who"))
		if err != nil || string(b) != "layer\n" {
			return fmt.Sprintf("read %d: %q %v", n, b, err)
		}
		names, err := os.ReadDir(tree)
		if err != nil || len(names) < 2 {
			return fmt.Sprintf("list %d: %d names %v", n, len(names), err)
		}
	}
}

// appendRole appends numbered lines by path, at 1 kHz, or as fast as it is when it is
// held up each time.
func appendRole(heldUp time.Duration) func(tree string, stop <-chan struct{}) string {
	return func(tree string, stop <-chan struct{}) string {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-stop:
				return "ok " + strconv.Itoa(n)
			case <-tick.C:
			}
			f, err := os.OpenFile(filepath.Join(tree, "log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return fmt.Sprintf("open %d: %v", n, err)
			}
			time.Sleep(heldUp)
			_, err = fmt.Fprintln(f, n)
			if err := errors.Join(err, f.Close()); err != nil {
				return fmt.Sprintf("write %d: %v", n, err)
			}
		}
	}
}

// keepRole keeps a file open for reading all the time.
func keepRole(tree string, stop <-chan struct{}) string {
	f, err := os.Open(filepath.Join(tree, "kept"))
	if err != nil {
		return err.Error()
	}
	<-stop
	b, err := io.ReadAll(f)
	if err != nil || string(b) != "kept\n" {
		return fmt.Sprintf("kept file: %q %v", b, err)
	}
	return "ok"
}

// swapRig is a tree with one layer that hides base's content.
type swapRig struct {
	t    *testing.T
	d    *Driver
	tree string
	v    snapshot.View

	patient bool // a swap that is refused is tried again

	hook func(at string) // see surprise
	note string          // where that notes the view which is to be shown
}

func newSwapRig(t *testing.T, o Options) *swapRig { return newSwapRigIn(t, t.TempDir(), o) }

func newSwapRigIn(t *testing.T, dir string, o Options) *swapRig {
	t.Helper()
	r := &swapRig{t: t, tree: filepath.Join(dir, "srv", "app")}
	sh(t, dir, "mkdir -p srv/app; cd srv/app; echo base > who; echo kept > kept; echo 0 > n")
	o.Tree, o.State = r.tree, filepath.Join(dir, "state")
	var err error
	if r.d, err = New(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for !sameMount(r.tree, dir) {
			if err := unmountTop(r.tree); err != nil {
				t.Error(err)
				break
			}
		}
		if err := r.d.unbindBase(); err != nil {
			t.Error(err)
		}
	})
	r.v.Open = snapshot.NewLayerID()
	r.show()
	sh(t, r.tree, "echo layer > who")
	r.push()
	return r
}

// show shows r.v. Emulated, who opens a file, writes and closes it takes longer than a
// swap is patient for: then it is asked for again.
func (r *swapRig) show() {
	r.t.Helper()
	for tries := 0; ; tries++ {
		_, err := r.d.Show(context.Background(), r.v)
		if err == nil {
			return
		}
		if !r.patient && !testns.Emulated() || tries == 100 || snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
			r.t.Fatal(err)
		}
	}
}

func (r *swapRig) push() {
	r.t.Helper()
	r.v = snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
	r.show()
}

// write changes one file, as a command would.
func (r *swapRig) write(n int) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.tree, "n"), []byte(strconv.Itoa(n)), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// TestSwapsUnderReaders: four readers in tight loops and one that keeps a file
// open never see base or nothing, and never hold a swap up.
func TestSwapsUnderReaders(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	r := newSwapRig(t, Options{})
	var players []*player
	for _, role := range []string{"read", "read", "read", "read", "keep"} {
		players = append(players, play(t, role, r.tree))
	}
	swaps := 1000
	if testing.Short() {
		swaps = 100
	}
	for i := range swaps {
		r.write(i)
		if len(r.v.Layers) == 60 {
			r.v = snapshot.View{Layers: r.v.Layers[:1], Open: snapshot.NewLayerID()}
			r.show()
			continue
		}
		r.push()
	}
	for _, p := range players {
		if said := p.end(t); !strings.HasPrefix(said, "ok") {
			t.Error(said)
		} else {
			t.Log(said)
		}
	}
}

// TestStageHeld: somebody who has what is on stage open for a moment, as he does who
// looks at our descriptors in /proc, makes no swap fail.
func TestStageHeld(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{Old: true})
	var held sync.WaitGroup
	restore := crash.SetHook(func(name string) {
		if name != "overlay.staged" {
			return
		}
		f, err := os.Open(r.d.stage())
		if err != nil {
			t.Error(err)
			return
		}
		held.Go(func() {
			time.Sleep(20 * time.Millisecond) // as long as he is held up
			f.Close()                         //nolint:errcheck // read only
		})
	})
	defer restore()
	r.write(1)
	r.push()
	held.Wait()
}

// TestReusedMountID: where the kernel gives a mount the id of one that is gone, a
// driver that looked before another one's swaps is not misled by it.
func TestReusedMountID(t *testing.T) {
	testns.Need(t)
	dir := t.TempDir()
	r := newSwapRigIn(t, dir, Options{Old: true})
	stays, err := New(Options{Tree: r.tree, State: filepath.Join(dir, "state"), Old: true})
	if err != nil {
		t.Fatal(err)
	}
	if open, err := stays.Shown(t.Context()); err != nil || open != r.v.Open {
		t.Fatal(open, err)
	}
	r.write(1)
	r.push()
	stays.shown.id = r.d.shown.id // as the kernel may have it
	if open, err := stays.Shown(t.Context()); err != nil || open != r.v.Open {
		t.Errorf("shown is %q (%v), want %q", open, err, r.v.Open)
	}
}

// TestSilence: in the subtree layout the kernel logs nothing at a swap. Other
// tests on the machine may make it say something, so one silent round of
// several is enough: a swap that is not silent leaves a line each time.
func TestSilence(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	var said string
	for range 10 {
		before := kernelLog(t)
		for i := range 20 {
			r.write(i)
			r.push()
		}
		if said = strings.TrimPrefix(kernelLog(t), before); said == "" {
			return
		}
	}
	t.Errorf("the kernel said: %s", said)
}

// TestSwapsUnderAppender: a writer that appends by path loses no line to a
// swap, and the swap leaves its lines in one layer or the next.
func TestSwapsUnderAppender(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	swaps := 300
	if testing.Short() {
		swaps = 50
	}
	appending(t, "append", swaps)
}

// TestSwapsUnderSlowAppender: nor does one that has to wait for a processor while it
// has the file open, whether a swap finds it in the way or not.
func TestSwapsUnderSlowAppender(t *testing.T) {
	testns.Need(t)
	testns.NeedKernel(t, 6, 5, "a swap without a gap")
	appending(t, "slow", 20)
}

func appending(t *testing.T, role string, swaps int) {
	r := newSwapRig(t, Options{})
	r.patient = role == "slow"
	p := play(t, role, r.tree)
	for i := range swaps {
		r.write(i)
		r.push()
	}
	said := p.end(t)
	n, err := strconv.Atoi(strings.TrimPrefix(said, "ok "))
	if err != nil {
		t.Fatal(said)
	}
	b, err := os.ReadFile(filepath.Join(r.tree, "log"))
	if err != nil && n > 0 {
		t.Fatal(err)
	}
	want := ""
	for i := range n {
		want += strconv.Itoa(i) + "\n"
	}
	if string(b) != want {
		t.Errorf("%d lines were written, %d are there", n, strings.Count(string(b), "\n"))
	}
	t.Logf("%d lines over %d swaps", n, swaps)
}

// kernelLog is what overlayfs has said so far.
func kernelLog(t *testing.T) string {
	out, err := exec.Command("dmesg").Output()
	if err != nil {
		t.Fatalf("dmesg: %v", err)
	}
	var lines []string
	for l := range strings.Lines(string(out)) {
		if strings.Contains(l, "overlayfs") {
			lines = append(lines, l)
		}
	}
	return strings.Join(lines, "")
}
