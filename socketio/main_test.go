package socketio

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon bounds every wait of the tests; nothing is measured by it.
const soon = 20 * time.Second

// wait takes the next value of c or fails the test.
func wait[T any](t testing.TB, c <-chan T, what string) T {
	t.Helper()
	timer := time.NewTimer(soon)
	defer timer.Stop()
	select {
	case v := <-c:
		return v
	case <-timer.C:
		t.Fatalf("no %s within %v", what, soon)
		panic("unreachable")
	}
}

// until waits for what has no channel.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(soon); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within %v", what, soon)
		}
	}
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	t.Cleanup(cancel)
	return ctx
}

// quick is a backoff for tests.
var quick = Backoff{Min: 5 * time.Millisecond, Max: 50 * time.Millisecond, Refused: 5 * time.Millisecond, Stable: time.Minute}

// startServer serves s on loopback until the test ends.
func startServer(t testing.TB, cfg ServerConfig) (*Server, string) {
	t.Helper()
	if cfg.OnPanic == nil {
		cfg.OnPanic = func(p *HandlerPanic) { t.Errorf("%v\n%s", p, p.Stack) }
	}
	s := NewServer(cfg)
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", s)
	h := httptest.NewServer(mux)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		h.Close()
	})
	return s, h.URL
}

// echo makes a namespace answer like the real backends under
// integration/backends do.
func echo(n *Namespace) {
	n.On("echo", func(s *Socket, e *Event) {
		args := back(e)
		if e.WantsAck() {
			_ = e.Ack(context.Background(), args...)
			return
		}
		_ = s.Emit(context.Background(), "echo", args...)
	})
	n.On("ask", func(s *Socket, e *Event) {
		m, err := s.EmitAck(context.Background(), "question", back(e)...)
		if err != nil {
			_ = e.Ack(context.Background(), map[string]string{"error": err.Error()})
			return
		}
		_ = e.Ack(context.Background(), back(&Event{Message: m})...)
	})
	n.On("bye", func(s *Socket, _ *Event) { s.Disconnect(false) })
}

// back makes arguments of what an event brought.
func back(e *Event) []any {
	var args []any
	for _, a := range e.Args {
		if b, err := e.Attachment(a); err == nil {
			args = append(args, Binary(b))
		} else {
			args = append(args, a)
		}
	}
	return args
}

// client is a Client that runs, and what happened to it.
type client struct {
	*Client
	connects    chan Connection
	disconnects chan error
	errors      chan error
	events      chan *Event
	connected   int // how many connects were taken from the channel
	stop        func()
}

// startClient runs a client until the test ends.
func startClient(t testing.TB, cfg Config, setup ...func(*Client)) *client {
	t.Helper()
	if cfg.Backoff == (Backoff{}) {
		cfg.Backoff = quick
	}
	inner, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{
		Client:      inner,
		connects:    make(chan Connection, 10_000),
		disconnects: make(chan error, 10_000),
		errors:      make(chan error, 10_000),
		events:      make(chan *Event, 100_000),
	}
	c.OnConnect(func(_ context.Context, n Connection) { c.connects <- n })
	c.OnDisconnect(func(_ context.Context, err error) { c.disconnects <- err })
	c.OnError(func(_ context.Context, err error) { c.errors <- err })
	c.OnAny(func(_ context.Context, e *Event) { c.events <- e })
	for _, f := range setup {
		f(inner)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	stopped := false
	c.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			_ = wait(t, ended, "end of Run")
		}
	}
	t.Cleanup(c.stop)
	return c
}

// connect waits for the next connection.
func (c *client) connect(t testing.TB) Connection {
	t.Helper()
	timer := time.NewTimer(soon)
	defer timer.Stop()
	for {
		select {
		case n := <-c.connects:
			c.connected++
			return n
		case <-timer.C:
			t.Fatalf("no connection within %v; last error: %v", soon, drainLast(c.errors))
		}
	}
}

func drainLast(c <-chan error) (last error) {
	for {
		select {
		case last = <-c:
		default:
			return last
		}
	}
}

// text shows a message's arguments.
func text(m Message) string {
	var parts []string
	for _, a := range m.Args {
		if b, err := m.Attachment(a); err == nil {
			parts = append(parts, fmt.Sprintf("<%x>", b))
		} else {
			parts = append(parts, string(a))
		}
	}
	return strings.Join(parts, " ")
}

func raw(s string) json.RawMessage { return json.RawMessage(s) }

// every runs a test over WebSocket, over polling, and upgraded.
func every(t *testing.T, f func(t *testing.T, transports []string)) {
	for name, transports := range map[string][]string{
		"websocket": {WebSocket},
		"polling":   {Polling},
		"upgrade":   {Polling, WebSocket},
	} {
		t.Run(name, func(t *testing.T) { f(t, transports) })
	}
}
