package snapshot

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func newRecord(t *testing.T) *Record {
	t.Helper()
	r, err := OpenRecord(filepath.Join(t.TempDir(), "record"))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func add(t *testing.T, r *Record, s Snapshot) Snapshot {
	t.Helper()
	s.ID, s.Parent, s.Kind = NewID(), r.Head().Snapshot, KindCommand
	h := r.Head()
	h.Snapshot = s.ID
	if err := r.Commit(h, nil, s); err != nil {
		t.Fatal(err)
	}
	return s
}

// slowLayers is Layers without memory: the definition.
func slowLayers(t *testing.T, r *Record, top ID) []LayerID {
	t.Helper()
	r, err := OpenRecord(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	var layers []LayerID
	for s, err := range r.Chain(top) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Layer != "" && (len(layers) == 0 || layers[len(layers)-1] != s.Layer) {
			layers = append(layers, s.Layer)
		}
	}
	slices.Reverse(layers)
	return layers
}

// TestLayers: the remembered stack gives what a walk to base gives, whatever
// was asked before, with shared and missing layers, over branches that
// rollbacks leave.
func TestLayers(t *testing.T) {
	r := newRecord(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	ids := []ID{""}
	for i := range 300 {
		h := r.Head()
		h.Snapshot = ids[rnd.IntN(len(ids))]
		if i%3 != 0 {
			h.Snapshot = ids[len(ids)-1]
		}
		if err := r.Move(h); err != nil {
			t.Fatal(err)
		}
		var layer LayerID
		switch rnd.IntN(4) {
		case 0:
		case 1: // shared with the entry below
			if l := slowLayers(t, r, h.Snapshot); len(l) > 0 {
				layer = l[len(l)-1]
			}
		default:
			layer = NewLayerID()
		}
		ids = append(ids, add(t, r, Snapshot{Layer: layer}).ID)
		for range 3 {
			top := ids[rnd.IntN(len(ids))]
			got, err := r.Layers(top)
			if err != nil {
				t.Fatal(err)
			}
			if want := slowLayers(t, r, top); !slices.Equal(got, want) {
				t.Fatalf("layers of %s after %d entries: got %v, want %v", top, i, got, want)
			}
		}
	}
}

// TestStackBounds: a new process reads few entries, however many commands there were
// and whether or not they changed anything: the old ones may as well be gone.
func TestStackBounds(t *testing.T) {
	r := newRecord(t)
	var ids []ID
	var want []LayerID
	for i := range 3 * stackEvery {
		s := Snapshot{}
		if i%100 == 0 {
			s.Layer = NewLayerID()
			want = append(want, s.Layer)
		}
		ids = append(ids, add(t, r, s).ID)
		var err error
		if r, err = OpenRecord(r.dir); err != nil { // each command as a process of its own
			t.Fatal(err)
		}
		if _, err := r.Layers(ids[i]); err != nil {
			t.Fatal(err)
		}
		if err := r.SaveStack(); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Remove(ids[:len(ids)-stackEvery-1]...); err != nil {
		t.Fatal(err)
	}
	r, err := OpenRecord(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Layers(ids[len(ids)-1]); err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v (%v), want %v", got, err, want)
	}
}

// TestReopen: a second reader sees what was written, field by field.
func TestReopen(t *testing.T) {
	r := newRecord(t)
	s := add(t, r, Snapshot{
		Layer: NewLayerID(), Command: "echo 'a\nb'\xff", BatchID: "b", CommandIndex: 3, Dir: "/x", Started: time.Now().UTC(),
		Duration: 5, ExitCode: 7, Signal: "SIGTERM", Changes: Counts{1, 2, 3}, SplitLinks: []string{"a", "d/b"}, PinnedBy: []Holder{{PID: 1, Name: "n", How: "cwd"}},
	})
	again, err := OpenRecord(r.dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := again.Snapshot(s.ID)
	if err != nil {
		t.Fatal(err)
	}
	s.Version, s.Command = Version, "echo 'a\nb'\ufffd"
	if d := cmp.Diff(s, got); d != "" {
		t.Error(d)
	}
	if again.Head().Snapshot != s.ID || again.Head().Seq != 1 {
		t.Error(again.Head())
	}
}

// TestRunning: the note of a started command is seen until the head moves, and
// one that was torn, or is longer than the file, is handled.
func TestRunning(t *testing.T) {
	r := newRecord(t)
	add(t, r, Snapshot{})
	begin := func(command string) Snapshot {
		t.Helper()
		s := Snapshot{ID: NewID(), Parent: r.Head().Snapshot, Command: command}
		if err := r.Begin(s, false); err != nil {
			t.Fatal(err)
		}
		got, ok, err := r.Running()
		if err != nil || !ok || got.ID != s.ID || got.Command != command {
			t.Fatal(got, ok, err)
		}
		return s
	}
	begin("one")
	begin(string(make([]byte, 2*runningSize)))
	s := begin("two")
	name := filepath.Join(r.dir, "running")
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	torn := slices.Clone(b)
	torn[100] ^= 1
	if err := os.WriteFile(name, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := r.Running(); ok || err != nil {
		t.Fatal("a torn note was believed", err)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	h := r.Head()
	h.Snapshot = s.ID
	if err := r.Commit(h, nil, s); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := r.Running(); ok || err != nil {
		t.Fatal("a finished command runs", err)
	}
}

// TestRunningOrdered: the same for a note that is an attribute, which takes turns
// with the file; a longer one goes to the file.
func TestRunningOrdered(t *testing.T) {
	r := newRecord(t)
	add(t, r, Snapshot{})
	h := r.Head()
	for i, size := range []int{10, 10, 2 * noteLong, 10} {
		s := Snapshot{ID: NewID(), Command: strings.Repeat("x", size)}
		if err := r.Begin(s, i > 0); err != nil {
			t.Fatal(err)
		}
		again, err := OpenRecord(r.dir)
		if err != nil {
			t.Fatal(err)
		}
		got, ok, err := again.Running()
		if err != nil || !ok || got.ID != s.ID {
			t.Fatal(i, got, ok, err)
		}
		n, err := unix.Lgetxattr(r.path("running"), noteAttr, nil)
		if has := err == nil && n > 0; has != (i > 0) {
			t.Fatal(i, n, err)
		}
		h.Snapshot = s.ID
		if err := r.Commit(h, nil, s); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := r.Running(); ok || err != nil {
			t.Fatal(i, "a finished command runs", err)
		}
	}
	if err := unix.Lsetxattr(r.path("running"), noteAttr, []byte("00000000 {}\n"), 0); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := r.Running(); ok || err != nil {
		t.Fatal("a note that does not fit its checksum was believed", err)
	}
}

// TestSpareMayBeHead: as long as it is not known that an exchange lasts, the
// spare, which may be HEAD on disk, is not written to.
func TestSpareMayBeHead(t *testing.T) {
	r := newRecord(t)
	s := add(t, r, Snapshot{})
	add(t, r, Snapshot{})
	h := r.Head()
	h.Snapshot = s.ID
	inode := func(name string) uint64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Stat(r.path(name), &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	old := inode("HEAD")
	if err := r.Publish(h, nil); err != nil {
		t.Fatal(err)
	}
	hold, err := os.Open(r.path("HEAD.spare")) // its inode is not given to another file meanwhile
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close() //nolint:errcheck // read only
	for _, other := range []bool{false, true} {
		if other {
			if r, err = OpenRecord(r.dir); err != nil {
				t.Fatal(err)
			}
		}
		if inode("HEAD.spare") != old && !other {
			t.Fatal("the spare is not the old head")
		}
		if err := r.Publish(h, nil); err != nil {
			t.Fatal(err)
		}
		if inode("HEAD") == old {
			t.Fatalf("a spare of which it is not known was written to; another process: %v", other)
		}
	}
	if err := r.Confirm(); err != nil {
		t.Fatal(err)
	}
	spare := inode("HEAD.spare")
	if err := r.Publish(h, nil); err != nil {
		t.Fatal(err)
	}
	if inode("HEAD") != spare {
		t.Fatal("a spare that can be written to was not")
	}
}

// TestRefusals: an unknown version, and what does not parse, are named and not
// touched.
func TestRefusals(t *testing.T) {
	r := newRecord(t)
	s := add(t, r, Snapshot{})
	for _, file := range []string{"HEAD", string(s.ID) + ".json"} {
		for _, bad := range []string{`{"version": 99}`, `{"version":`, ``} {
			name := filepath.Join(r.dir, file)
			good, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(name, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			again, err := OpenRecord(r.dir)
			if err == nil {
				_, err = again.Snapshot(s.ID)
			}
			var e *Error
			if !errors.As(err, &e) || !strings.Contains(err.Error(), name) {
				t.Errorf("%s with %q: %v", file, bad, err)
			}
			if now, err := os.ReadFile(name); err != nil || string(now) != bad {
				t.Errorf("%s was touched: %q %v", file, now, err)
			}
			if err := os.WriteFile(name, good, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestResolve: any unique prefix, and candidates where there are several.
func TestResolve(t *testing.T) {
	r := newRecord(t)
	a := add(t, r, Snapshot{})
	b := add(t, r, Snapshot{})
	if id, err := r.Resolve(string(a.ID)); err != nil || id != a.ID {
		t.Error(id, err)
	}
	if id, err := r.Resolve(string(b.ID[:30])); err != nil || id != b.ID {
		t.Error(id, err)
	}
	var e *Error
	if _, err := r.Resolve(string(a.ID[:4])); !errors.As(err, &e) || len(e.Candidates) != 2 {
		t.Error(err)
	}
	for _, bad := range []string{"", "zz", "../../etc/passwd", "ffff"} {
		if _, err := r.Resolve(bad); CodeOf(err) != CodeUnknownSnapshot {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestCommitFails: when the flush fails, the old head stands, here and for a
// new reader.
func TestCommitFails(t *testing.T) {
	r := newRecord(t)
	s := add(t, r, Snapshot{})
	h := r.Head()
	h.Snapshot = "none"
	boom := errors.New("boom")
	if err := r.Commit(h, func(...string) error { return boom }); !errors.Is(err, boom) {
		t.Fatal(err)
	}
	again, err := OpenRecord(r.dir)
	if err != nil || again.Head().Snapshot != s.ID || r.Head().Snapshot != s.ID {
		t.Fatal(again.Head(), r.Head(), err)
	}
}
