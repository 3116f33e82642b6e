package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/internal/logdisk"
	"deployx/internal/testns"
	"deployx/overlay"
	"deployx/snapshot"
)

// everyCuts is how many cuts there are for each driver and filesystem; the soak
// makes all.
const everyCuts = 10

// TestEveryCut works on a tree that lies on a disk which remembers every write
// and flush, and then looks at what a power cut between any two of them would
// have left, of what was not flushed all or some. What was reported before it
// must be there; the operation that was cut off took place or did not, or is a
// command recorded as unfinished. The next to open finds nothing to do, and the
// oldest command can be undone and done again.
func TestEveryCut(t *testing.T) {
	shares := []float64{0.2}
	soak := os.Getenv("DEPLOYX_SOAK") != ""
	if soak {
		shares = []float64{0, 0.2}
	}
	for _, driver := range []string{overlay.Name, fallback.Name} {
		for _, fs := range []string{"ext4", "xfs"} {
			for _, share := range shares {
				t.Run(fmt.Sprint(driver, " ", fs, " ", share), func(t *testing.T) {
					s := play(t, life{driver, fs, everyPlan, share, false})
					t.Parallel() // from here on no hook is set
					if !soak {
						s.cuts(s.some(everyCuts))
						return
					}
					s.cuts(s.all())
					s.met()
				})
			}
		}
	}
}

// TestEveryCutFinds leaves out the flush of a command's layer: the cuts between
// the move of the head and the end of the command must find that.
func TestEveryCutFinds(t *testing.T) {
	s := play(t, life{driver: overlay.Name, fs: "ext4", plan: slices.Repeat([]int{19}, 20), fast: true})
	tried := 0
	for i, n := range s.notes {
		if n.Op != "run" || !n.Done || !slices.ContainsFunc(n.Changes, func(c change) bool { return c.Kind == "write" }) {
			continue
		}
		for at := n.At; at > s.notes[i-1].At; at-- {
			tried++
			if wrong := s.wrong(powerless{at, 0}); len(wrong) > 0 {
				t.Logf("cut %d, in command %d: %s", tried, n.N, strings.Join(wrong, "\n"))
				return
			}
		}
	}
	t.Errorf("%d cuts find nothing", tried)
}

// everyPlan are rolls of killerChild.choose; 19 is a command.
var everyPlan = []int{
	19, 19, 9, 19, 19, 0, 5, 19, 0, 19, 7, 19, 19, 8, 19, 0, 5, rollRestore, 19, rollThrough,
	19, 9, rollCommit, 19, 19, rollForget, 19, 19, 0, 19, 9, 5, 19,
}

// A life is what a tree goes through. At a share of the named points, and of the
// lines that commands print, the kernel happens to write back what is dirty.
type life struct {
	driver, fs string
	plan       []int
	share      float64
	fast       bool // the session's own option to flush nothing
}

// A played is a life on a disk, of which the power can be cut anywhere.
type played struct {
	testing.TB
	disk     *logdisk.Disk
	img      *testns.Image
	driver   string
	rnd      *rand.Rand
	requests string
	from, to int // what the disk had been sent before the first operation, and at the end
	notes    []note
	found    map[string]int
}

func play(t *testing.T, l life) *played {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	s := &played{TB: t, disk: logdisk.New(t), driver: l.driver, rnd: rand.New(rand.NewPCG(seed, 3)), found: map[string]int{}}
	s.img = testns.NewImage(t, testns.ImageOptions{Type: l.fs, Open: s.disk.Open})
	var log bytes.Buffer
	w := &killerChild{rig: killRig(t, s.img.Dir, l.driver), rnd: rand.New(rand.NewPCG(seed, 4)), token: "e", log: &log, holders: holdersOf(s.img.Dir)}
	k := &kernel{TB: t, disk: s.disk, dir: s.img.Dir, life: l, rnd: rand.New(rand.NewPCG(seed, 5))}
	w.cut, w.Session.o.Fast, w.opts.Fast = k, l.fast, l.fast
	k.sync()
	s.from = s.disk.Count()
	defer s.unmount()
	defer func() { (&killer{TB: t}).close(w.rig) }()
	defer crash.SetHook(func(string) { k.perhaps() })()
	for ; w.n < len(l.plan); w.n++ {
		w.one()
	}
	s.to = s.disk.Count()
	s.notes = (&killer{TB: t}).notes(log.Bytes())
	s.requests = s.disk.Requests()
	return s
}

func (s *played) unmount() {
	s.Helper()
	(&killer{TB: s.TB, dir: s.img.Dir}).leave()
	s.img.Unmount()
}

// A powerless is the moment after so many requests, with the seed by which what
// was not flushed is lost; none is if that is 0.
type powerless struct {
	n    int
	seed uint64
}

// all are the moments after each write, and where two are not flushed once more
// with a seed; after a flush, which changes nothing on the disk, those at which
// something is reported.
func (s *played) all() (all []powerless) {
	reports := map[int]bool{}
	for _, n := range s.notes {
		reports[n.At] = true
	}
	for n := s.from; n <= s.to; n++ {
		if s.requests[n-1] != 'f' || reports[n] {
			all = append(all, powerless{n, 0})
		}
		if !strings.Contains(s.requests[n-2:n], "f") {
			all = append(all, powerless{n, s.rnd.Uint64()})
		}
	}
	return all
}

func (s *played) some(n int) []powerless {
	all := s.all()
	s.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	some := all[:min(n, len(all))]
	slices.SortFunc(some, func(a, b powerless) int { return a.n - b.n })
	return some
}

// cuts looks at each.
func (s *played) cuts(cuts []powerless) {
	s.Helper()
	start := time.Now()
	for _, c := range cuts {
		s.cut(s.TB, c)
		if s.Failed() {
			s.Fatalf("%+v, in %d to %d: %s", c, s.from, s.to, s.requests[s.from:c.n])
		}
	}
	took := time.Since(start)
	s.Logf("%d requests, %d of them flushes; %d cuts, %s each, in: %v", s.to-s.from,
		strings.Count(s.requests[s.from:s.to], "f"), len(cuts), took/time.Duration(max(1, len(cuts))), s.found)
}

// met fails if some operation was never cut off.
func (s *played) met() {
	s.Helper()
	for _, what := range []string{"run", "rollback", "redo", "gc", "commit", "forget", "unfinished"} {
		if s.found[what] == 0 {
			s.Errorf("no cut in the middle of a %s", what)
		}
	}
}

// wrong is cut for who wants to know what is wrong.
func (s *played) wrong(c powerless) []string {
	v := verdict{TB: s.TB}
	done := make(chan struct{})
	go func() { // which Fatal ends
		defer close(done)
		s.cut(&v, c)
	}()
	<-done
	return v.wrong
}

// A verdict is a test that may fail.
type verdict struct {
	testing.TB
	wrong []string
}

func (v *verdict) Error(args ...any)            { v.wrong = append(v.wrong, fmt.Sprintln(args...)) }
func (v *verdict) Errorf(f string, args ...any) { v.Error(fmt.Sprintf(f, args...)) }
func (v *verdict) Failed() bool                 { return len(v.wrong) > 0 }
func (v *verdict) Fatal(args ...any)            { v.Error(args...); runtime.Goexit() }
func (v *verdict) Fatalf(f string, args ...any) { v.Fatal(fmt.Sprintf(f, args...)) }
func (v *verdict) Logf(f string, args ...any)   {}

// cut tells t what is wrong after one.
func (s *played) cut(t testing.TB, c powerless) {
	t.Helper()
	k := &killer{
		TB: t, dir: s.img.Dir, driver: s.driver, powerCut: true,
		at: map[snapshot.ID]files{"": {}}, now: files{}, found: s.found,
	}
	s.disk.Cut(c.n, c.seed)
	s.img.Mount()
	defer s.unmount()
	end := 0
	for end < len(s.notes) && s.notes[end].At <= c.n {
		end++
	}
	k.check(k.play(s.notes[:end]))
	k.undoAll()
	if t.Failed() {
		for _, n := range s.notes[:end] {
			t.Logf("%+v", n)
		}
	}
}

// undoAll rolls all back that can be, and takes that back.
func (k *killer) undoAll() {
	k.Helper()
	r := killRig(k.TB, k.dir, k.driver)
	defer k.close(r)
	var oldest snapshot.Snapshot
	for s, err := range r.rec.Chain(r.rec.Head().Snapshot) {
		if err != nil {
			k.Fatal(err)
		}
		oldest = s
	}
	if oldest.ID == "" {
		return
	}
	if _, err := r.Rollback(context.Background(), Target{ID: oldest.ID}, RollbackOptions{Drift: DriftDrop}); err != nil {
		k.Fatal(err)
	}
	if want, ok := k.at[r.rec.Head().Snapshot]; ok {
		k.must(&note{Op: "a rollback of all"}, want, readFiles(k, r.tree))
	}
	if err := redo(r); err != nil {
		k.Fatal(err)
	}
	k.must(&note{Op: "redo of all"}, k.now, readFiles(k, r.tree))
}

// A kernel writes back what is dirty, now and then, or does what it must for the
// fsync of a neighbour: the journal then, which tells of all, and no more data.
type kernel struct {
	testing.TB
	life
	disk *logdisk.Disk
	dir  string

	mu  sync.Mutex
	rnd *rand.Rand
}

func (k *kernel) perhaps() {
	k.mu.Lock()
	roll := k.rnd.Float64() / k.share
	k.mu.Unlock()
	switch {
	case roll < 0.5:
		k.sync()
	case roll < 1:
		k.neighbour()
	}
}

func (k *kernel) neighbour() {
	f, err := os.OpenFile(filepath.Join(k.dir, "neighbour"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, err = f.WriteString("x")
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		k.Error(err)
	}
}

func (k *kernel) sync() {
	if err := durable.SyncFilesystem(k.dir); err != nil {
		k.Error(err)
	}
}

func (*kernel) begin(string)         {}
func (*kernel) end()                 {}
func (k *kernel) steer(n, _ int) int { return k.plan[n] }
func (*kernel) happened() bool       { return false }
func (k *kernel) at() int            { return k.disk.Count() }

func (k *kernel) Write(p []byte) (int, error) {
	k.perhaps()
	return len(p), nil
}
