package socketio

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

// Backoff says how long a client waits before it connects again. The zero
// value means the defaults in brackets.
type Backoff struct {
	Min     time.Duration // before the first retry [1 s]; doubles with each one
	Max     time.Duration // largest wait before jitter [30 s]
	Refused time.Duration // least wait after the server refused us [15 s]
	Stable  time.Duration // how long a connection must last for the count to start anew [30 s]
}

func (b Backoff) withDefaults() Backoff {
	set := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	set(&b.Min, time.Second)
	set(&b.Max, 30*time.Second)
	set(&b.Refused, 15*time.Second)
	set(&b.Stable, 30*time.Second)
	return b
}

// delay is the wait before retry n (0 is the first) after err. The cap comes
// before the jitter of ±50 %: the reference client caps after it, so a fleet
// that has waited long comes back in lockstep. What a Retry-After asks for is
// spread upwards only.
func (b Backoff) delay(n int, err error) time.Duration {
	d := b.Max
	if n < 32 { // beyond it the shift could overflow; Max is reached long before
		d = min(b.Min<<n, b.Max)
		if d <= 0 {
			d = b.Max
		}
	}
	if refused(err) {
		d = max(d, b.Refused)
	}
	d = time.Duration(float64(d) * (0.5 + rand.Float64()))
	var h *HandshakeError
	if errors.As(err, &h) && h.RetryAfter > 0 {
		d = max(d, time.Duration(float64(h.RetryAfter)*(1+rand.Float64()/2)))
	}
	return d
}

// refused tells whether the server said no to who we are, so that asking again
// soon is of no use.
func refused(err error) bool {
	var c *ConnectError
	if errors.As(err, &c) {
		return true
	}
	var h *HandshakeError
	return errors.As(err, &h) && (h.Status == http.StatusUnauthorized || h.Status == http.StatusForbidden ||
		h.Status == http.StatusProxyAuthRequired)
}
