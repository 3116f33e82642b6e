package overlay

import (
	"context"
	"time"

	"deployx/snapshot"
)

var _ snapshot.Rememberer = (*Driver)(nil)

// heldFresh is how long holders are remembered without a look for others.
const heldFresh = 10 * time.Second

// remembered are holds that a look through all processes has found.
type remembered struct {
	mount uint64 // that was held
	at    time.Time
	holds []hold
}

// Held looks at the holders that were found last, microseconds for each, and
// through all processes if none of them holds the tree any more. See
// snapshot.Rememberer.
//
// What is at the other end of the same link below /proc is a hold whoever has the
// number of the process now.
func (d *Driver) Held(ctx context.Context) ([]snapshot.Holder, error) {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return nil, err
	}
	if d.held.mount == d.shown.id && time.Since(d.held.at) < heldFresh {
		var still []hold
		for _, h := range d.held.holds {
			if h.there() {
				still = append(still, h)
			}
		}
		if d.held.holds = still; len(still) > 0 {
			return named(still), nil
		}
	}
	return d.Holders(ctx)
}

// there tells whether a hold leads where it led.
func (h *hold) there() bool {
	if h.link == "" {
		return false // a mapping: nothing to look at
	}
	st, err := statLink(h.link)
	return err == nil && st.Mnt_id == h.stat.Mnt_id && st.Ino == h.stat.Ino && st.Dev_major == h.stat.Dev_major && st.Dev_minor == h.stat.Dev_minor
}
