package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// The transports, as they are named in Engine.IO's query and in
// [Config.Transports].
const (
	WebSocket = "websocket"
	Polling   = "polling"
)

// transport carries the frames of one session. One goroutine reads and one
// writes.
type transport interface {
	name() string
	// read waits for the next frame. errMoved means: ask the engine for its
	// transport again.
	read(ctx context.Context) (frame, error)
	write(ctx context.Context, frames []frame) error
	// close tells the other side if it can. It may block until abort.
	close(ctx context.Context)
	// abort ends every read, write and close at once.
	abort()
}

// defaultMaxPayload counts when the handshake names no maxPayload, which
// Python's engineio before 4.4 never does; it is the default limit of both
// servers.
const defaultMaxPayload = 1_000_000

// handshake is the payload of the open packet (engine.io-protocol v4,
// "Handshake"); times are in milliseconds.
type handshake struct {
	SID          string   `json:"sid"`
	Upgrades     []string `json:"upgrades"`
	PingInterval int64    `json:"pingInterval"`
	PingTimeout  int64    `json:"pingTimeout"`
	MaxPayload   int64    `json:"maxPayload"`
}

// parseHandshake reads an open frame. Values that would overflow or that make
// no sense are refused, so that what follows need not look at them again.
func parseHandshake(f frame) (handshake, error) {
	var h handshake
	if err := f.check(); err != nil {
		return h, err
	}
	if f.kind() != frameOpen {
		return h, fmt.Errorf("packet type %q is no open packet", f.kind())
	}
	if err := json.Unmarshal(f.body(), &h); err != nil {
		return h, fmt.Errorf("open packet: %w", err)
	}
	const day = int64(24 * time.Hour / time.Millisecond)
	switch {
	case h.SID == "":
		return h, errors.New("open packet: no sid")
	case h.PingInterval <= 0 || h.PingInterval > day || h.PingTimeout <= 0 || h.PingTimeout > day:
		return h, fmt.Errorf("open packet: pingInterval %d, pingTimeout %d", h.PingInterval, h.PingTimeout)
	case h.MaxPayload < 0:
		return h, fmt.Errorf("open packet: maxPayload %d", h.MaxPayload)
	}
	if h.MaxPayload == 0 {
		h.MaxPayload = defaultMaxPayload
	}
	return h, nil
}

// patience is how long nothing may come (engine.io-protocol v4, "Heartbeat").
func (h handshake) patience() time.Duration {
	return time.Duration(h.PingInterval+h.PingTimeout) * time.Millisecond
}
