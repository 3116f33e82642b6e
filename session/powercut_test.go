package session

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/overlay"
	"deployx/snapshot"
)

// How many power cuts there are, on both drivers and both filesystems together.
const (
	powerCuts     = 200
	powerCutsSoak = 4000
)

// TestPowerCut takes the power away at random moments of random operations, and
// in the middle of commands: what was not flushed is lost, and everything fails
// from then on. On the filesystem mounted again, what was reported complete must
// be there; the operation that was cut off took place or did not, or is a command
// recorded as unfinished. The next to open finds nothing to do.
func TestPowerCut(t *testing.T) {
	cuts := powerCuts
	if testing.Short() {
		cuts = 20
	}
	if os.Getenv("DEPLOYX_SOAK") != "" {
		cuts = powerCutsSoak
	}
	for _, driver := range []string{overlay.Name, fallback.Name} {
		for _, fs := range []string{"ext4", "xfs"} {
			t.Run(driver+" "+fs, func(t *testing.T) { cutMany(t, driver, fs, cuts/4) })
		}
	}
}

// A cut takes the power away at its moment: a named point of the code, or when
// the command says something. A nil cut never does.
type cut struct {
	dir   string
	in    string       // the kind of operation in which points count; "" is any
	held  bool         // somebody stands in the tree then
	left  atomic.Int64 // points until then
	lines atomic.Int64 // lines of a command until then
	done  atomic.Bool

	mu  sync.Mutex
	now bool // such an operation is under way
}

// begin tells that an operation begins.
func (c *cut) begin(op string) {
	if c != nil {
		c.during(c.in == "" || c.in == op)
	}
}

// end tells that the operation is over. After that, the power has gone or stays:
// what an operation leaves to be done in the background is cut off in the next.
func (c *cut) end() {
	if c != nil {
		c.during(false)
	}
}

func (c *cut) during(now bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = now
}

// steer leads to the kind of operation after some others.
func (c *cut) steer(n, roll int) int {
	switch {
	case c == nil:
		return roll
	case roll == rollHold && !c.held:
		return 19
	case n < 4:
		return roll
	case c.held && n == 4:
		return rollHold
	case c.in == "gc" && n%2 == 0:
		return 7
	case c.in == "gc":
		return 19
	case c.in == "rollback", c.in == "redo" && n%2 == 0:
		return 0
	case c.in == "redo":
		return 5
	case c.in == "commit" && n%2 == 0:
		return rollCommit + n/2%2
	case c.in == "forget" && n%3 == 0:
		return rollForget
	case c.in == "restore" && n%2 == 0:
		return rollRestore
	case c.in != "":
		return 19
	}
	return roll
}

func (c *cut) point(string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now && c.left.Add(-1) <= 0 {
		c.power()
	}
}

// Write is the output of a command. It serves a nil cut too.
func (c *cut) Write(p []byte) (int, error) {
	if c != nil && c.lines.Add(-int64(bytes.Count(p, []byte{'\n'}))) <= 0 {
		c.power()
	}
	return len(p), nil
}

func (*cut) at() int { return 0 }

func (c *cut) happened() bool { return c != nil && c.done.Load() }

func (c *cut) power() {
	if !c.done.Swap(true) {
		testns.CutPower(c.dir)
	}
}

// TestCutUnconfirmed takes the power away between the move of the head and the sync
// that makes it last: the command is not reported.
func TestCutUnconfirmed(t *testing.T) {
	for _, driver := range []string{overlay.Name, fallback.Name} {
		for _, fs := range []string{"ext4", "xfs"} {
			for _, at := range []string{"record.moved", "session.recorded"} {
				t.Run(driver+" "+fs+" "+at, func(t *testing.T) {
					img := testns.NewImage(t, testns.ImageOptions{Type: fs})
					r := killRig(t, img.Dir, driver)
					defer unmountAll(t, r.tree)
					defer r.Session.Close() //nolint:errcheck // nothing works any more
					r.run("echo 1 > one")
					off := crash.SetHook(func(p string) {
						if p == at {
							testns.CutPower(img.Dir)
						}
					})
					defer off()
					_, err := r.Run(context.Background(), Command{Text: "echo 2 > two", Done: func(Result) {
						t.Error("reported")
					}})
					if !snapshot.IsUnconfirmed(err) {
						t.Errorf("it ended with: %v", err)
					}
				})
			}
		}
	}
}

func cutMany(t *testing.T, driver, fs string, cuts int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	size := int64(128 << 20)
	if fs == "xfs" {
		size = 0 // the least it takes
	}
	img := testns.NewImage(t, testns.ImageOptions{Type: fs, Size: size})
	k := &killer{
		TB: t, dir: img.Dir, driver: driver, powerCut: true,
		at: map[snapshot.ID]files{"": {}}, now: files{}, found: map[string]int{},
	}
	log := filepath.Join(t.TempDir(), "log")
	defer k.leave()
	before := ""
	for round := range cuts {
		k.untilCut(rnd, log, round)
		k.leave()
		img.Unmount()
		img.Mount()
		last, ops := k.replay(log)
		k.check(last)
		if t.Failed() {
			t.Logf("before that:\n%s", before)
			t.Fatalf("round %d, the power went in:\n%s", round, ops)
		}
		before = ops
	}
	t.Logf("cut in: %v", k.found)
	for _, what := range []string{"run", "rollback", "redo", "gc", "commit", "forget", "restore", "unfinished"} {
		if cuts >= 50 && k.found[what] == 0 && (what != "restore" || driver != fallback.Name) {
			t.Errorf("no cut in the middle of a %s", what)
		}
	}
}

// cutIn are the kinds of operation that cuts come in, in turn; "" is a command or
// any.
var cutIn = []string{"", "", "commit", "rollback", "redo", "gc", "commit", "restore", "forget"}

// untilCut works on the tree until the power goes.
func (k *killer) untilCut(rnd *rand.Rand, log string, round int) {
	k.Helper()
	out, err := os.Create(log)
	if err != nil {
		k.Fatal(err)
	}
	defer out.Close() //nolint:errcheck // a test's
	c := &cut{dir: k.dir}
	c.lines.Store(math.MaxInt32)
	c.left.Store(math.MaxInt32)
	if c.in = cutIn[round%len(cutIn)]; c.in == "restore" && k.driver == fallback.Name {
		c.in = "" // there is nothing to show
	}
	c.held = os.Getenv("DEPLOYX_SOAK") != "" && round%2 == 0 && c.in != "restore" && c.in != "forget" && k.driver == overlay.Name
	switch {
	case round%len(cutIn) == 0:
		c.lines.Store(1 + rnd.Int64N(8))
	case c.in == "":
		c.left.Store(1 + rnd.Int64N(80))
	case c.in == "commit" || c.in == "forget":
		c.left.Store(1 + rnd.Int64N(60))
	default:
		c.left.Store(1 + rnd.Int64N(15))
	}
	w := &killerChild{rig: killRig(k.TB, k.dir, k.driver), rnd: rnd, token: fmt.Sprint("r", round), log: out, cut: c, holders: holdersOf(k.dir)}
	restore := crash.SetHook(c.point)
	defer restore()
	for ; !c.happened(); w.n++ {
		if w.n == 50 { // there are few points in what a held tree lets such an operation do
			c.in = ""
		}
		if w.n > 100 {
			k.Fatalf("the power does not go: in %q, held: %t, points left: %d", c.in, c.held, c.left.Load())
		}
		w.one()
	}
	w.Session.Close() //nolint:errcheck // nothing works any more
}
