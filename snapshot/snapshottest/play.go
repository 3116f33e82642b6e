package snapshottest

import (
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// point is a state that a crash may leave to be shown.
type point struct {
	View  snapshot.View
	Tree  int  // number of the picture of the tree
	Below int  // number of the picture of View.Layers alone
	Dirty bool // the open layer is not empty
}

// mark is what a player notes before it calls the driver, and when it is back.
type mark struct {
	Call     string
	From, To point
	Done     bool
}

func (m mark) String() string {
	return fmt.Sprintf("%s from %d layers to %d (done: %v)", m.Call, len(m.From.View.Layers), len(m.To.View.Layers), m.Done)
}

// player is the child of Crash: it works with the driver by a script, and notes
// what it does and how the tree looks, until it dies.
type player struct {
	t     *testing.T
	d     snapshot.Driver
	do    ordeal
	side  *side
	marks *os.File
	now   point
	known map[string]int // pictures of states by their layers
	pics  int

	mu    sync.Mutex // the driver may pass points in the background
	call  int
	count int
}

// play plays the script.
func (do ordeal) play(t *testing.T, open Open) {
	marks, err := os.Create(filepath.Join(do.Log, "marks"))
	if err != nil {
		t.Fatal(err)
	}
	defer marks.Close() //nolint:errcheck // read by whoever outlives us, synced or not
	points, err := os.Create(filepath.Join(do.Log, "points"))
	if err != nil {
		t.Fatal(err)
	}
	defer points.Close() //nolint:errcheck // as above
	p := &player{t: t, do: do, side: newSide(do.Place.Tree), marks: marks, known: map[string]int{}}
	defer crash.SetHook(func(name string) { p.pass(points, name) })()
	p.script(open)
}

// pass is called at every point.
func (p *player) pass(points io.Writer, name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if name == p.do.Point {
		if p.count++; p.count == p.do.Hit {
			crashtest.Die(name)
		}
	}
	if _, err := fmt.Fprintln(points, p.call, name); err != nil {
		panic(err)
	}
}

// script pushes, rolls back, brings back, hides: each from an open layer with
// changes and from one without.
func (p *player) script(open Open) {
	p.known[key(nil)] = p.picture()
	p.d = open(p.t, p.do.Place.Tree, p.do.Place.State)
	p.show(nil)
	p.work(write("d/f", "one"), mv("d/s", "s"), chmod(".", 0o711), setx("d", "user.a", "a"))
	p.goTo(p.dirty())
	p.work(rmAll("other"), write("other", "now a file"), mkfifo("d/fifo"), rm("d/g"), symlink("d", "link"))
	p.goTo(p.dirty())
	p.work(rmAll("d"), mkdir("d", 0o700), write("d/f", "three"), mv("s", "d/s"))
	all := p.dirty()
	p.goTo(all[:1])
	p.work(write("abandoned", "a"))
	p.dirty()
	left := p.now.View.Open
	p.goTo(all)
	p.discard(left)
	p.goTo(p.dirty())
	p.goTo(nil)
	p.goTo(all[:2])
	p.work(touch("d/f", 1_000_000_000, 1), rmdir("empty"))
	p.dirty()
	p.goTo(nil)
	if err := p.d.Close(); err != nil {
		p.t.Fatal(err)
	}
}

func (p *player) work(ops ...Op) {
	for _, op := range ops {
		if err := p.side.apply(op); err != nil {
			p.t.Fatalf("%v: %v", op, err)
		}
	}
	p.now.Tree, p.now.Dirty = p.picture(), true
}

// dirty asks, and gives the layers that make up the tree as it is.
func (p *player) dirty() []snapshot.LayerID {
	var dirty bool
	p.calling("dirty", p.now, func() (err error) {
		dirty, err = p.d.Dirty(p.t.Context(), p.now.View)
		return err
	})
	if dirty != p.now.Dirty {
		p.t.Fatalf("Dirty: want %v, got %v", p.now.Dirty, dirty)
	}
	layers := slices.Clone(p.now.View.Layers)
	if dirty {
		layers = append(layers, p.now.View.Open)
		p.known[key(layers)] = p.now.Tree
	}
	return layers
}

func (p *player) goTo(layers []snapshot.LayerID) {
	if len(layers) > 0 {
		p.show(layers)
		return
	}
	base := p.known[key(nil)]
	p.calling("hide", point{Tree: base, Below: base}, func() error { return p.d.Hide(p.t.Context()) })
}

func (p *player) show(layers []snapshot.LayerID) {
	v := snapshot.View{Layers: slices.Clone(layers), Open: snapshot.NewLayerID()}
	pic := p.known[key(layers)]
	p.calling("show", point{View: v, Tree: pic, Below: pic}, func() error {
		_, err := p.d.Show(p.t.Context(), v)
		return err
	})
}

func (p *player) discard(id snapshot.LayerID) {
	p.calling("discard", p.now, func() error { return p.d.Discard(p.t.Context(), id) })
}

// calling notes a call before and after it, and where it leads.
func (p *player) calling(name string, to point, do func() error) {
	p.mu.Lock()
	p.call++
	p.mu.Unlock()
	m := mark{Call: name, From: p.now, To: to}
	err := errors.Join(p.note(m), do())
	m.Done = true
	if err = errors.Join(err, p.note(m)); err != nil {
		p.t.Fatalf("%s: %v", name, err)
	}
	p.now = to
}

func (p *player) note(m mark) error { return json.NewEncoder(p.marks).Encode(m) }

// picture takes one and gives its number.
func (p *player) picture() int {
	pic, err := treecmp.Take(p.do.Place.Tree)
	if err == nil {
		err = savePicture(p.do.Log, p.pics, pic)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	p.pics++
	return p.pics - 1
}

func pictureFile(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("picture-%d", n)) }

func savePicture(dir string, n int, pic treecmp.Picture) error {
	f, err := os.Create(pictureFile(dir, n))
	if err != nil {
		return err
	}
	return errors.Join(gob.NewEncoder(f).Encode(pic), f.Close())
}

func loadPicture(t *testing.T, dir string, n int) (pic treecmp.Picture) {
	t.Helper()
	f, err := os.Open(pictureFile(dir, n))
	if err == nil {
		err = errors.Join(gob.NewDecoder(f).Decode(&pic), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	return pic
}

// lastMark is what the child noted last.
func lastMark(t *testing.T, dir string) (last mark) {
	t.Helper()
	f, err := os.Open(filepath.Join(dir, "marks"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	for d := json.NewDecoder(f); ; {
		var m mark
		if err := d.Decode(&m); errors.Is(err, io.EOF) {
			return last
		} else if err != nil {
			t.Fatal(err)
		}
		last = m
	}
}
