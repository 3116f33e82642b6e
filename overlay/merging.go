package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"deployx/snapshot"
)

// When and what is merged. Runs grow as in a log-structured merge tree, by what
// is in them and not by how many layers they stand for, so that an entry is
// linked some log(n) times in all and a layer of a million files is left where
// it is until there is as much above it. With one file a layer, 10,000 layers
// take 7.3 links each, and there are 9 units at most (a calculation); what is
// left of mergeMust is room for the commands that run while a large merge does.
const (
	mergeAbove = 8  // units in a view; from then on a merge is worth it
	mergeLeast = 4  // units that one merge takes at the least
	mergeMust  = 15 // units at which Show merges light ones before it mounts
	mergeHard  = 64 // units at which Show merges whatever it takes

	// mergeLight is how many entries Show may merge, and a command wait for,
	// though the units are too many: some 20 µs each were measured.
	mergeLight = 2000

	// mergePatience bounds the same where an entry is more than a link: a file
	// whose bytes and attributes lie in different layers is copied.
	mergePatience = 250 * time.Millisecond

	// weightKept is the weight from which on it is worth a file.
	weightKept = 4096
)

// merging is the merge that goes on in the background: Show does not touch
// what it takes.
type merging struct {
	mu     sync.Mutex
	newest snapshot.LayerID // of those being merged; "" if none are

	weights map[string]int // of the units that were looked at last
}

// Maintain merges layers of a view while it is more deeply stacked than is
// good. It reads sealed layers and adds a run beside them, so it may go on
// while commands run; ctx ends it.
func (d *Driver) Maintain(ctx context.Context, v snapshot.View) error {
	for {
		units := d.mergeable(v.Layers)
		if len(units) <= d.mergeAbove {
			return nil
		}
		d.merging.begin(v.Layers[len(v.Layers)-1])
		err := d.mergeNewest(ctx, v.Layers, units)
		d.merging.begin("")
		if err != nil {
			return err
		}
	}
}

// hurry makes a view that is about to be shown less deep. It takes no more than
// a moment: what is heavy is left to Maintain, for no command is to wait for
// that, unless there are very many units.
func (d *Driver) hurry(ctx context.Context, layers []snapshot.LayerID) error {
	for {
		units := d.mergeable(layers)
		if len(units) <= d.mergeMust {
			return nil
		}
		if len(units) > mergeHard {
			return d.mergeNewest(ctx, layers, units)
		}
		soon, cancel := context.WithTimeout(ctx, d.patience)
		merged, err := d.mergeLightest(soon, layers, units)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			return nil // the background has more time
		}
		if err != nil || !merged {
			return err
		}
	}
}

// mergeNewest merges what is worth it, whatever it takes.
func (d *Driver) mergeNewest(ctx context.Context, layers []snapshot.LayerID, units []unit) error {
	weights, err := d.weigh(ctx, units)
	if err != nil {
		return err
	}
	return d.mergeUnits(ctx, layers, units[:worth(weights, d.mergeLeast)])
}

// mergeLightest merges the newest units that are light and that the background
// does not merge, if there are two.
func (d *Driver) mergeLightest(ctx context.Context, layers []snapshot.LayerID, units []unit) (merged bool, err error) {
	weights, err := d.weigh(ctx, units)
	if err != nil {
		return false, err
	}
	k := light(weights[:min(worth(weights, d.mergeLeast), d.merging.above(layers, units))])
	if k < 2 {
		return false, nil
	}
	return true, d.mergeUnits(ctx, layers, units[:k])
}

// worth is how many of the newest units one merge should take, by their
// weights: the least, and so many that the unit below weighs more than twice as
// much as the outcome, or all.
func worth(weights []int, least int) int {
	k, n := 0, 0
	for k < len(weights) && (k < least || weights[k] < 2*n) {
		n += weights[k]
		k++
	}
	return k
}

// light is how many of the newest units are not too heavy together.
func light(weights []int) int {
	k, n := 0, 0
	for k < len(weights) && n+weights[k] <= mergeLight {
		n += weights[k]
		k++
	}
	return k
}

// mergeUnits makes the run that stands for the newest units of a view.
func (d *Driver) mergeUnits(ctx context.Context, layers []snapshot.LayerID, newest []unit) error {
	n := 0
	for _, u := range newest {
		n += u.n
	}
	below, of := layers[:len(layers)-n], layers[len(layers)-n:]
	aside, size, err := d.mergeAside(ctx, below, of)
	if err == nil {
		if err = d.publish(aside, of, size); err != nil {
			err = errors.Join(err, d.toTrash(aside))
		}
	}
	if err != nil {
		return fmt.Errorf("merge %d layers: %w", n, err)
	}
	return nil
}

func (m *merging) begin(newest snapshot.LayerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.newest = newest
}

// above is how many of a view's newest units the merge that goes on does not
// take.
func (m *merging) above(layers []snapshot.LayerID, units []unit) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := len(layers)
	for k, u := range units {
		if m.newest != "" && layers[at-1] == m.newest {
			return k
		}
		at -= u.n
	}
	return len(units)
}

// weigh counts the entries of each unit.
func (d *Driver) weigh(ctx context.Context, units []unit) ([]int, error) {
	d.merging.mu.Lock()
	known := d.merging.weights
	d.merging.mu.Unlock()
	now, weights := map[string]int{}, make([]int, len(units))
	for i, u := range units {
		n, ok := known[u.dir]
		if !ok {
			var err error
			if n, err = weight(ctx, u); err != nil {
				return nil, fmt.Errorf("weigh layer: %w", err)
			}
		}
		now[u.dir], weights[i] = n, n
	}
	d.merging.mu.Lock()
	defer d.merging.mu.Unlock()
	d.merging.weights = now
	return weights, nil
}

// weight counts the entries of one unit, or finds that it has been done: a run
// was counted when it was made, and a large number of a layer is kept beside it.
// It is derived, and a wrong one would only make a merge take more or less than
// it should.
func weight(ctx context.Context, u unit) (n int, err error) {
	if u.n > 1 {
		if size, err := readSize(u.dir); err == nil {
			return size.entries, nil
		}
	}
	name := filepath.Join(u.dir, "entries")
	if b, err := os.ReadFile(name); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			return n, nil
		}
	}
	for _, sub := range []string{"s", "u"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(u.dir, sub), func(_ string, _ fs.DirEntry, err error) error {
			n++
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return errors.Join(err, ctx.Err())
		}))
	}
	if err == nil && n >= weightKept {
		os.WriteFile(name, fmt.Appendln(nil, n), 0o600) //nolint:errcheck // see above
	}
	return n, err
}
