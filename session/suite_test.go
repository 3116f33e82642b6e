package session

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/overlay"
	"deployx/snapshot"
	"deployx/snapshot/snapshottest"
)

// TestSealedConformance is the drivers' suite in a tree that a process holds all the
// while: a session is the driver, each layer of the suite's is what was copied out
// since the one before, and each view is shown in place.
func TestSealedConformance(t *testing.T) {
	testns.Need(t)
	o := snapshottest.Options{CountsLayers: true, NoWhiteoutDevices: true}
	o.Held(t, newHeldTrees().open)
}

// heldTrees are the trees of one run of the suite: what is to be known of each when
// its session is opened anew.
type heldTrees map[string]*heldTree

func newHeldTrees() heldTrees { return heldTrees{} }

// A heldTree is a session as a driver. The suite's layers are runs of the entries'.
type heldTree struct {
	snapshot.Driver
	*Session
	t      *testing.T
	opts   Options
	open   snapshot.LayerID   // the suite's
	below  []snapshot.LayerID // the suite's, below that
	real   map[snapshot.LayerID][]snapshot.LayerID
	tops   map[string]snapshot.ID
	did    int
	holder *exec.Cmd
}

func (all heldTrees) open(t *testing.T, tree, state string) snapshot.Driver {
	h := all[tree]
	if h == nil {
		h = &heldTree{t: t, real: map[snapshot.LayerID][]snapshot.LayerID{}, tops: map[string]snapshot.ID{}}
		all[tree] = h
		h.opts = Options{
			State:      snapshot.NewState(state),
			Tree:       snapshot.Tree{Path: tree, Driver: overlay.Name, Created: time.Now(), Store: ChooseStore(tree, state)},
			OpenDriver: openDriver,
			Warn:       func(s string) { t.Error("warning:", s) },
		}
		if err := h.opts.State.Add(h.opts.Tree); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(h.letGo)
	}
	s, err := Open(t.Context(), h.opts)
	if err != nil {
		t.Fatal(err)
	}
	h.Session, h.Driver = s, s.drv
	return h
}

// hold has a process stand in the tree and keep a directory and a file of it open.
func (h *heldTree) hold() {
	dir, file := ".", ""
	err := filepath.WalkDir(h.opts.Tree.Path, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			dir = p
		case d.Type().IsRegular():
			file = p
		}
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.holder = exec.Command("bash", "-c", `exec 3<"$0"; [[ -z $1 ]] || exec 4<>"$1"; echo; exec sleep infinity`, dir, file)
	h.holder.Dir = h.opts.Tree.Path
	_, out := testns.Start(h.t, h.holder)
	testns.Line(h.t, out)
}

func (h *heldTree) letGo() {
	if h.holder != nil {
		unix.Kill(h.holder.Process.Pid, unix.SIGKILL) //nolint:errcheck // Wait tells
		h.holder.Wait()                               //nolint:errcheck // it was killed
	}
}

func (h *heldTree) Close() error { return h.Session.Close() }

func (h *heldTree) Shown(ctx context.Context) (snapshot.LayerID, error) {
	open, err := h.Driver.Shown(ctx)
	if err == nil && open != h.rec.Head().Open {
		err = fmt.Errorf("shown is %q, the head has %q", open, h.rec.Head().Open)
	}
	return h.open, err
}

// stack are the entries' layers that the suite's are made of.
func (h *heldTree) stack(layers []snapshot.LayerID) (real []snapshot.LayerID, err error) {
	for _, l := range layers {
		r, ok := h.real[l]
		if !ok {
			return nil, fmt.Errorf("no layer %s", l)
		}
		real = append(real, r...)
	}
	return real, nil
}

func stackKey(layers []snapshot.LayerID) string { return fmt.Sprint(layers) }

// seal has what others wrote copied out, and notes where the suite's open layer
// stands.
func (h *heldTree) seal(ctx context.Context) error {
	err := h.exclusively(ctx, func() error {
		held, err := h.catchUp(ctx, true)
		if err == nil && len(held) == 0 {
			err = errors.New("nobody holds the tree")
		}
		return err
	})
	if err != nil {
		return err
	}
	head := h.rec.Head()
	all, err := h.rec.Layers(head.Snapshot)
	if err != nil {
		return err
	}
	below, err := h.stack(h.below)
	if err != nil {
		return err
	}
	if len(below) > len(all) || !slices.Equal(below, all[:len(below)]) {
		return fmt.Errorf("the entries make up %v, which does not stand on %v", all, below)
	}
	h.real[h.open] = all[len(below):]
	h.tops[stackKey(append(slices.Clone(h.below), h.open))] = head.Snapshot
	return nil
}

func (h *heldTree) Dirty(ctx context.Context, _ snapshot.View) (bool, error) {
	err := h.seal(ctx)
	return len(h.real[h.open]) > 0, err
}

func (h *heldTree) Show(ctx context.Context, v snapshot.View) (t snapshot.Transition, err error) {
	if h.open == "" {
		if err := h.exclusively(ctx, func() error { return h.uncover(ctx) }); err != nil {
			return t, err
		}
		h.hold()
		h.tops[stackKey(nil)] = ""
	} else if v.Open != h.open {
		if err := h.seal(ctx); err != nil {
			return t, err
		}
		if err := h.goThere(ctx, v.Layers); err != nil {
			return t, err
		}
	}
	t.Swapped = v.Open != h.open
	h.below, h.open = slices.Clone(v.Layers), v.Open
	return t, nil
}

// goThere does what a rollback or a redo does.
func (h *heldTree) goThere(ctx context.Context, layers []snapshot.LayerID) error {
	top, ok := h.tops[stackKey(layers)]
	if !ok {
		return fmt.Errorf("no layers %v", layers)
	}
	return h.exclusively(ctx, func() error {
		from, to, u := h.rec.Head(), h.rec.Head(), Undo{}
		to.Snapshot, to.Redo = top, nil
		was, err := h.rec.Layers(from.Snapshot)
		if err != nil {
			return err
		}
		if err := h.goTo(ctx, from, to, &u, time.Now()); err != nil {
			return err
		}
		is, err := h.rec.Layers(top)
		if err == nil && !slices.Equal(was, is) && !u.InPlace {
			err = errors.New("not in place")
		}
		return err
	})
}

// Depth is that of what is mounted.
func (h *heldTree) Depth(snapshot.View) (depth, limit int) {
	v, err := h.rec.View(h.rec.Head())
	if err != nil {
		h.t.Fatal(err)
	}
	return h.Driver.Depth(v)
}

func (h *heldTree) Changes(ctx context.Context, below, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	return h.translated(below, layers, func(b, l []snapshot.LayerID) error { return h.Driver.Changes(ctx, b, l, visit) })
}

func (h *heldTree) translated(below, layers []snapshot.LayerID, do func(below, layers []snapshot.LayerID) error) error {
	b, err := h.stack(below)
	if err != nil {
		return err
	}
	l, err := h.stack(layers)
	if err != nil {
		return err
	}
	return do(b, l)
}

func (h *heldTree) ChangesByPath(ctx context.Context, below, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	return h.translated(below, layers, func(b, l []snapshot.LayerID) error {
		return h.Driver.(snapshot.Renamer).ChangesByPath(ctx, b, l, visit)
	})
}

func (h *heldTree) Open(ctx context.Context, layers []snapshot.LayerID, path string) (f io.ReadCloser, err error) {
	err = h.translated(nil, layers, func(_, l []snapshot.LayerID) (err error) {
		f, err = h.Driver.Open(ctx, l, path)
		return err
	})
	return f, err
}

// Do has every other group of operations done by a command; the others are what a
// service does.
func (h *heldTree) Do(ops []snapshottest.Op) ([]error, error) {
	if h.did++; h.did%2 == 0 {
		return snapshottest.Apply(h.opts.Tree.Path, ops), nil
	}
	name := filepath.Join(h.t.TempDir(), "ops")
	var b bytes.Buffer
	if err := errors.Join(gob.NewEncoder(&b).Encode(ops), os.WriteFile(name, b.Bytes(), 0o600)); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	res, err := h.Run(h.t.Context(), Command{
		Text:   fmt.Sprintf("GORACE=atexit_sleep_ms=0 '%s' suite-ops '%s' '%s'", os.Args[0], h.opts.Tree.Path, name), // or each takes a second to end
		Stdout: &out, Stderr: &out,
	})
	if err != nil {
		return nil, err
	}
	if res.Snapshot.ExitCode != 0 || res.Snapshot.Mode != snapshot.ModeSealed {
		return nil, fmt.Errorf("exit status %d, mode %q: %s", res.Snapshot.ExitCode, res.Snapshot.Mode, &out)
	}
	return outcomes(out.String())
}

// suiteOps is the command: it does operations and prints the error numbers.
func suiteOps(tree, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	var ops []snapshottest.Op
	if err := gob.NewDecoder(f).Decode(&ops); err != nil {
		return err
	}
	for _, err := range snapshottest.Apply(tree, ops) {
		var n unix.Errno
		if err != nil && !errors.As(err, &n) {
			return err
		}
		fmt.Println(int(n))
	}
	return nil
}

func outcomes(printed string) (errs []error, err error) {
	for s := range strings.Lines(printed) {
		var n int
		if _, err := fmt.Sscan(s, &n); err != nil {
			return nil, fmt.Errorf("%q: %w", s, err)
		}
		if errs = append(errs, nil); n != 0 {
			errs[len(errs)-1] = unix.Errno(n)
		}
	}
	return errs, nil
}
