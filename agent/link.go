package agent

import (
	"context"
	"encoding/json"
	"sync"

	"deployx/socketio"
)

// transport is what the agent needs of a Socket.IO client.
type transport interface {
	Run(ctx context.Context) error
	On(event string, h socketio.Handler)
	OnAny(h socketio.Handler)
	OnConnect(func(context.Context, socketio.Connection))
	OnDisconnect(func(ctx context.Context, reason error))
	OnError(func(context.Context, error))
	Emit(ctx context.Context, event string, args ...any) error
	Ask(ctx context.Context, event string, args ...any) (wait func(context.Context) (socketio.Message, error), err error)
	MaxPayload() int
}

// link is the connection, with a number for each so that who sends can tell
// whether what it sent before went out on the same one.
type link struct {
	transport

	mu      sync.Mutex
	last    uint64
	up      bool
	changed chan struct{} // closed and made anew when a connection comes or goes
}

func newLink(t transport) *link { return &link{transport: t, changed: make(chan struct{})} }

// now is the number of the connection, 0 without one, and a channel that is
// closed when that changes.
func (l *link) now() (uint64, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up {
		return 0, l.changed
	}
	return l.last, l.changed
}

func (l *link) set(up bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if up {
		l.last++
	}
	l.up = up
	close(l.changed)
	l.changed = make(chan struct{})
}

// tell sends an event that may be lost.
func (l *link) tell(ctx context.Context, event string, payload any) {
	_ = l.Emit(ctx, event, payload) // that is what may be lost means
}

// tag adds agent_id, which every event carries, to an object.
func tag(agentID string, v any) (json.RawMessage, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	id, err := json.Marshal(agentID)
	if err != nil {
		return nil, err
	}
	out := append(append([]byte(`{"agent_id":`), id...), ',')
	if len(b) == 2 { // {}
		out = out[:len(out)-1]
	}
	return append(out, b[1:]...), nil
}
