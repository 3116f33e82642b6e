package overlay

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// holds are the ways to hold a tree, and what Holders must say of each; "" is
// a soft hold.
var holds = map[string]struct {
	hold func(tree string) error
	says string
}{
	"cwd":       {func(tree string) error { return os.Chdir(tree) }, "cwd"},
	"directory": {func(tree string) error { return leak(os.Open(tree)) }, "(directory)"},
	"opath":     {func(tree string) error { return leak(os.OpenFile(tree, unix.O_PATH, 0)) }, "O_PATH"},
	"write":     {func(tree string) error { return leak(os.OpenFile(tree+"/kept", os.O_WRONLY, 0)) }, "(write)"},
	"read":      {func(tree string) error { return leak(os.Open(tree + "/kept")) }, ""},
	"lock": {func(tree string) error {
		f, err := os.Open(tree + "/kept")
		return errors.Join(leak(f, err), syscall.Flock(int(f.Fd()), syscall.LOCK_EX))
	}, "(lock)"},
	"socket":  {func(tree string) error { _, err := net.Listen("unix", tree+"/sock"); return err }, "unix socket"},
	"mapping": {mapShared, "mapping"},
	"library": {mapPrivate, ""},
	"removed": {func(tree string) error {
		return errors.Join(leak(os.Open(tree+"/kept")), os.Remove(tree+"/kept"))
	}, "(removed)"},
	"replaced": {func(tree string) error {
		return errors.Join(leak(os.OpenFile(tree+"/kept", unix.O_PATH, 0)), os.Rename(tree+"/who", tree+"/kept"))
	}, "(removed)"},
	"library removed": {func(tree string) error { return errors.Join(mapPrivate(tree), os.Remove(tree+"/kept")) }, "mapping (removed)"},
}

var leaked []*os.File

func leak(f *os.File, err error) error {
	leaked = append(leaked, f)
	return err
}

func mapShared(tree string) error {
	f, err := os.OpenFile(tree+"/kept", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = unix.Mmap(int(f.Fd()), 0, 5, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return errors.Join(err, f.Close())
}

// mapPrivate is what a program's own file and its libraries are.
func mapPrivate(tree string) error {
	f, err := os.Open(tree + "/kept")
	if err != nil {
		return err
	}
	_, err = unix.Mmap(int(f.Fd()), 0, 5, unix.PROT_READ, unix.MAP_PRIVATE)
	return errors.Join(err, f.Close())
}

func init() { //nolint:gochecknoinits // roles are looked up before any test runs
	for name, h := range holds {
		roles["hold-"+name] = func(tree string, stop <-chan struct{}) string {
			<-stop
			return "ok"
		}
		prepare["hold-"+name] = h.hold
	}
}

// TestHolders: each hard hold is named with its process, keeps a swap from
// happening, and ends with the process; a soft one is no hindrance. Mappings are told
// in another way by old kernels.
func TestHolders(t *testing.T) {
	testns.Need(t)
	for name, h := range holds {
		t.Run(name, func(t *testing.T) { testHolder(t, Options{}, name, h.says) })
	}
	for _, name := range []string{"mapping", "library", "library removed"} {
		t.Run(name+", old", func(t *testing.T) { testHolder(t, Options{Old: true}, name, holds[name].says) })
	}
}

func testHolder(t *testing.T, o Options, name, says string) {
	r := newSwapRig(t, o)
	p := play(t, "hold-"+name, r.tree)
	r.write(1)
	got, err := r.d.Holders(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if says == "" {
		if len(got) != 0 {
			t.Fatalf("a reader is no holder: %v", got)
		}
		r.push()
		return
	}
	if len(got) != 1 || got[0].PID != p.cmd.Process.Pid || !strings.Contains(got[0].How, says) || got[0].Name == "" {
		t.Fatalf("got %+v, want pid %d with %q", got, p.cmd.Process.Pid, says)
	}
	refusedThenFree(t, r, p)
}

func refusedThenFree(t *testing.T, r *swapRig, p *player) {
	ctx := context.Background()
	next := snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
	if _, err := r.d.Show(ctx, next); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Fatalf("a swap under a holder: %v", err)
	}
	if open, err := r.d.Shown(ctx); err != nil || open != r.v.Open {
		t.Fatal("a refused swap changed the view", open, err)
	}
	if said := p.end(t); said != "ok" {
		t.Fatal(said)
	}
	p.cmd.Wait() //nolint:errcheck // killed or not
	if got, err := r.d.Holders(ctx); err != nil || len(got) != 0 {
		t.Fatalf("after its end: %v %v", got, err)
	}
	r.push()
}

// TestFrozenProof: a writer that the look at the processes misses (its
// descriptor is in flight between processes) is found by the kernel, and the
// TestHeld: holders that were found are believed while they hold the tree, and
// no longer: then others are looked for.
func TestHeld(t *testing.T) {
	testns.Need(t)
	for name, h := range holds {
		if h.says == "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			r := newSwapRig(t, Options{})
			held := func(want int) {
				t.Helper()
				got, err := r.d.Held(context.Background())
				if err != nil || len(got) != want {
					t.Fatalf("want %d holders, got %v, %v", want, got, err)
				}
			}
			r.write(1)
			held(0)
			p := play(t, "hold-"+name, r.tree)
			held(1)
			second := play(t, "hold-directory", r.tree)
			if known := name != "mapping"; known { // the only one that leaves nothing to look at
				held(1)
			}
			p.end(t)
			p.cmd.Wait() //nolint:errcheck // killed or not
			held(1)
			second.end(t)
			second.cmd.Wait() //nolint:errcheck // see above
			held(0)
			r.write(1)
			r.push()
			held(0)
		})
	}
}

// old view comes back.
func TestFrozenProof(t *testing.T) {
	testns.Need(t)
	r := newSwapRig(t, Options{})
	f, err := os.OpenFile(filepath.Join(r.tree, "kept"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0]) //nolint:errcheck // a socket
	defer unix.Close(pair[1]) //nolint:errcheck // a socket
	if err := unix.Sendmsg(pair[0], []byte("x"), unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	open, err := r.d.Shown(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	next := snapshot.View{Layers: append(r.v.Layers, r.v.Open), Open: snapshot.NewLayerID()}
	m, err := r.d.detachedForTest(next)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close() //nolint:errcheck // a mount handle
	if _, err := r.d.swap(context.Background(), m, &submounts{d: r.d}, next, open); snapshot.CodeOf(err) != snapshot.CodeTreeBusy {
		t.Fatalf("a swap under a hidden writer: %v", err)
	}
	sh(t, r.tree, "echo still > writable; grep -q layer who")
	if got, err := r.d.Shown(context.Background()); err != nil || got != open {
		t.Fatal("the old view did not come back", got, err)
	}
}

func (d *Driver) detachedForTest(v snapshot.View) (*os.File, error) {
	if _, err := d.prepare(context.Background(), v, ""); err != nil {
		return nil, err
	}
	return d.detached(v)
}
