package overlay

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// When and what is merged. A mount has 16 layers at the most, whatever the
// history: base, mergeMost units, and the open layer. Runs grow as in a
// log-structured merge tree, by what is in them and not by how many layers they
// stand for: a merge takes neighbours of which none weighs more than twice as
// much as the rest, so that an entry is linked some log(n) times in all and a
// layer of a million files is left where it is until there is as much beside it;
// of these it takes those that cost least for each unit that goes. With one file a
// layer, 10,000 layers take 8.1 links each, and there are 9 units at most; sixty
// layers of one weight that come as fast as two of them can be merged take 1.2
// links each (calculations: TestWorth, TestWorthHeavy). What is left of mergeMost
// is room for the commands that run while a large merge does.
const (
	mergeAbove = 8  // units in a view; from then on a merge is worth it
	mergeLeast = 3  // units that one merge takes at the least,
	mergeSoon  = 11 // until there are more than this: then two
	mergeMost  = 14 // units that are mounted

	// mergePatience is how long a command waits for a merge and is not told why.
	mergePatience = 250 * time.Millisecond
)

// merging is what is being merged, in the background and by somebody who waits
// for it, and what units were found to weigh.
type merging struct {
	mu      sync.Mutex
	claims  []*claim
	weights map[string]int // of the units that were looked at last

	tell func(string) // see OnWait
}

// A window is some neighbours of the units of a view.
type window struct{ from, to, weight int }

// Maintain merges layers of a view while it is more deeply stacked than is
// good. It reads sealed layers and adds a run beside them, so it may go on
// while commands run; ctx ends it.
func (d *Driver) Maintain(ctx context.Context, v snapshot.View) error {
	for {
		units := d.mergeable(v.Layers)
		if len(units) <= d.mergeAbove {
			return nil
		}
		weights, err := d.weigh(ctx, units)
		if err != nil {
			return err
		}
		least := d.mergeLeast
		if len(units) > mergeSoon {
			least = 2
		}
		c := d.merging.claim(units, len(units), func(free []window, _ []*claim) (window, bool) { return worth(weights, free, least) })
		if c == nil {
			return nil // somebody else is at it
		}
		if err := d.mergeClaimed(ctx, v.Layers, units, c); err != nil {
			return err
		}
	}
}

// OnWait sets who is told why Show or Room take long. See snapshot.Maintainer.
func (d *Driver) OnWait(tell func(string)) { d.merging.tell = tell }

// Room makes sure that Show need not merge anything for a view with one layer
// more. See snapshot.Maintainer.
func (d *Driver) Room(ctx context.Context, v snapshot.View) error {
	return d.room(ctx, v.Layers, d.mergeMost-1)
}

// room merges layers, which are sealed, until they are no more than so many units.
// Where that fails the view is stacked deeper, for a disk that is full must not
// take a tree from view; that is told.
func (d *Driver) room(ctx context.Context, layers []snapshot.LayerID, most int) error {
	if len(d.units(layers)) <= most {
		return nil
	}
	t := time.AfterFunc(d.patience, func() {
		d.merging.say("layers came faster than they could be merged: this waits until there are few enough")
	})
	defer t.Stop()
	for {
		more, err := d.mergeOne(ctx, layers, most)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			d.merging.say("the tree is stacked deeper than it should be: " + err.Error())
		}
		if err != nil || !more {
			return nil
		}
	}
}

func (m *merging) say(s string) {
	if m.tell != nil {
		m.tell(s)
	}
}

// mergeOne merges the lightest neighbours that are enough for room, or waits for
// the merge that goes on if it is sooner done. It tells whether there was
// anything to do.
func (d *Driver) mergeOne(ctx context.Context, layers []snapshot.LayerID, most int) (more bool, err error) {
	units := d.units(layers)
	need := len(units) - max(1, most)
	if need <= 0 {
		return false, nil
	}
	weights, err := d.weigh(ctx, units)
	if err != nil {
		return false, err
	}
	var sooner *claim
	c := d.merging.claim(units, len(d.mergeable(layers)), func(free []window, others []*claim) (window, bool) {
		w, ok := lightest(weights, free, need+1)
		for _, o := range others {
			if !ok || o.weight <= w.weight {
				sooner = o
			}
		}
		return w, ok && sooner == nil
	})
	switch {
	case c != nil:
		return true, d.mergeClaimed(ctx, layers, units, c)
	case sooner == nil:
		return false, nil
	}
	select {
	case <-sooner.over:
	case <-ctx.Done():
	}
	return true, nil
}

// worth is what a merge should take of the free units: so many at the least, none
// of which weighs more than twice as much as the others together, at the lowest
// price for each that goes. If there are none such, what is cheapest.
func worth(weights []int, free []window, least int) (best window, ok bool) {
	var price float64
	var fits bool
	for _, f := range free {
		for from := f.from; from < f.to; from++ {
			w, heaviest := window{from: from}, 0
			for to := from + 1; to <= f.to; to++ {
				n := weights[to-1]
				w.to, w.weight, heaviest = to, w.weight+n, max(heaviest, n)
				if to-from < max(2, least) {
					continue
				}
				p, fit := float64(w.weight)/float64(to-from-1), heaviest <= 2*(w.weight-heaviest)
				if !ok || fit && !fits || fit == fits && p < price {
					best, price, fits, ok = w, p, fit, true
				}
			}
		}
	}
	return best, ok
}

// lightest are n neighbours among the free units, or as many as there are
// together, that weigh least.
func lightest(weights []int, free []window, n int) (best window, ok bool) {
	for ; n >= 2 && !ok; n-- {
		for _, f := range free {
			for from := f.from; from+n <= f.to; from++ {
				w := window{from: from, to: from + n}
				for _, x := range weights[from : from+n] {
					w.weight += x
				}
				if !ok || w.weight < best.weight {
					best, ok = w, true
				}
			}
		}
	}
	return best, ok
}

// mergeUnits makes the run that stands for some of the units of a view.
func (d *Driver) mergeUnits(ctx context.Context, layers []snapshot.LayerID, units []unit, w window) error {
	top := len(layers) - count(units[:w.from])
	n := count(units[w.from:w.to])
	below, of := layers[:top-n], layers[top-n:top]
	aside, size, err := d.mergeAside(ctx, below, of)
	if err == nil {
		if err = d.publish(aside, of, size); err != nil {
			err = errors.Join(err, d.toTrash(aside))
		}
	}
	if err != nil {
		return fmt.Errorf("merge %d layers: %w", n, err)
	}
	crash.Point("overlay.merged")
	return nil
}

// count is how many layers units stand for.
func count(units []unit) (n int) {
	for _, u := range units {
		n += u.n
	}
	return n
}
