package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"deployx/internal/heard"
	"deployx/socketio"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon bounds every wait of the tests; nothing is measured by it.
const soon = 60 * time.Second

// got is an event as the backend got it.
type got struct {
	name string
	raw  json.RawMessage
	m    map[string]any
}

func (g got) String() string       { return fmt.Sprintf("%s %.200s", g.name, g.raw) }
func (g got) str(k string) string  { s, _ := g.m[k].(string); return s }
func (g got) num(k string) float64 { n, _ := g.m[k].(float64); return n }
func (g got) yes(k string) bool    { b, _ := g.m[k].(bool); return b }

// backend is our server role, playing a backend of the field.
type backend struct {
	t      testing.TB
	srv    *socketio.Server
	url    string
	silent atomic.Bool // acks nothing, as a Node backend without callbacks
	auth   chan json.RawMessage
	gate   atomic.Pointer[chan struct{}] // closed to let the handlers go on
	header chan http.Header

	events heard.Log[got]

	mu      sync.Mutex
	sockets []*socketio.Socket
}

func newBackend(t testing.TB, cfg socketio.ServerConfig) *backend {
	t.Helper()
	b := &backend{t: t, auth: make(chan json.RawMessage, 10_000), header: make(chan http.Header, 10_000)}
	b.srv = socketio.NewServer(cfg)
	n := b.srv.Of("/")
	n.Auth(func(s *socketio.Socket) error {
		b.auth <- s.Auth()
		b.header <- s.Request().Header
		return nil
	})
	n.OnConnect(func(s *socketio.Socket) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.sockets = append(b.sockets, s)
	})
	n.OnAny(b.take)
	mux := http.NewServeMux()
	mux.Handle("/socket.io/", b.srv)
	h := httptest.NewServer(mux)
	b.url = h.URL
	t.Cleanup(func() {
		if g := b.gate.Swap(nil); g != nil {
			close(*g)
		}
		if err := b.srv.Close(); err != nil {
			t.Error(err)
		}
		h.Close()
	})
	return b
}

func (b *backend) take(_ *socketio.Socket, e *socketio.Event) {
	if g := b.gate.Load(); g != nil {
		<-*g
	}
	b.keep(e)
	if !b.silent.Load() {
		_ = e.Ack(context.Background(), map[string]bool{"ok": true}) // the connection may be gone
	}
}

func (b *backend) keep(e *socketio.Event) {
	g := got{name: e.Name, raw: e.Arg(0)}
	if err := json.Unmarshal(g.raw, &g.m); err != nil {
		b.t.Errorf("%s: %v", e.Name, err)
	}
	b.events.Add(g)
}

// freeze makes the handlers wait until thaw.
func (b *backend) freeze() (thaw func()) {
	c := make(chan struct{})
	b.gate.Store(&c)
	return func() { b.gate.Store(nil); close(c) }
}

// all are the events that came so far and are wanted.
func (b *backend) all(want func(got) bool) []got { return b.events.Find(want) }

// named wants events of a name, with an id in one of their fields if it is not
// empty.
func named(name, id string) func(got) bool {
	return func(g got) bool {
		return g.name == name && (id == "" || g.str("command_id") == id || g.str("batch_id") == id || g.str("snapshot_id") == id)
	}
}

// wait waits for n events that are wanted, and returns them.
func (b *backend) wait(n int, what string, want func(got) bool) []got {
	b.t.Helper()
	return b.events.Wait(b.t, soon, n, what, want)
}

func (b *backend) one(name, id string) got {
	b.t.Helper()
	return b.wait(1, name+" of "+id, named(name, id))[0]
}

// registered waits until the n-th registration.
func (b *backend) registered(n int) {
	b.t.Helper()
	b.wait(n, "registration", named("agent_register", ""))
}

func (b *backend) socket() *socketio.Socket {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sockets[len(b.sockets)-1]
}

// send sends a request without asking for an ack.
func (b *backend) send(event string, payload any) {
	b.t.Helper()
	if err := b.socket().Emit(context.Background(), event, payload); err != nil {
		b.t.Fatal(err)
	}
}

// ask sends a request and returns its ack.
func (b *backend) ask(event string, payload any) map[string]any {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), soon)
	defer cancel()
	m, err := b.socket().EmitAck(ctx, event, payload)
	if err != nil {
		b.t.Fatalf("%s: %v", event, err)
	}
	var out map[string]any
	if err := json.Unmarshal(m.Arg(0), &out); err != nil {
		b.t.Fatal(err)
	}
	return out
}

// refused asks and wants a refusal with that code.
func (b *backend) refused(code, event string, payload any) string {
	b.t.Helper()
	a := b.ask(event, payload)
	e, _ := a["error"].(map[string]any)
	if a["ok"] != false || e["code"] != code {
		b.t.Fatalf("%s %v: want the refusal %s, got %v", event, payload, code, a)
	}
	s, _ := e["message"].(string)
	return s
}

type obj = map[string]any

// lockedBuffer keeps the log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// running is an agent that runs.
type running struct {
	*Agent
	t      testing.TB
	host   *host
	log    *lockedBuffer
	cancel context.CancelFunc
	ended  chan error
	over   bool
}

// quick are times for tests. What is acked late, on a busy machine, must not be sent
// twice: many count.
func quick() tuning {
	return tuning{
		Heartbeat: 200 * time.Millisecond, Patience: 300 * time.Millisecond, AckTimeout: soon,
	}
}

// unheard is for backends that ack nothing.
func unheard(o *Options) { o.AckTimeout = time.Second }

// startAgent runs an agent on a fake host until the test ends.
func startAgent(t testing.TB, b *backend, h *host, change ...func(*Options)) *running {
	t.Helper()
	o := Options{
		URL: b.url, State: h.dir, Open: h.open, Trees: []string{"/srv/app"}, Shells: []string{"bash", "sh"},
		Backoff: socketio.Backoff{Min: 5 * time.Millisecond, Max: 50 * time.Millisecond, Refused: 5 * time.Millisecond, Stable: time.Minute},
		Version: "test", FlushTimeout: 5 * time.Second, Grace: 5 * time.Second, tuning: quick(),
	}
	log := &lockedBuffer{}
	o.Log = logrus.New()
	o.Log.SetOutput(log)
	o.Log.SetLevel(logrus.DebugLevel)
	for _, f := range change {
		f(&o)
	}
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &running{Agent: a, t: t, host: h, log: log, ended: make(chan error, 1)}
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(context.Background())
	go func() { r.ended <- a.Run(ctx) }()
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("the agent said:\n%s", log.end())
		}
	})
	return r
}

// stop is SIGTERM.
func (r *running) stop() {
	r.t.Helper()
	if r.over {
		return
	}
	r.over = true
	r.cancel()
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("Run: %v", err)
		}
	case <-time.After(soon):
		r.t.Fatal("Run does not end")
	}
}

func writeFile(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
	return name
}

// end is what was logged last.
func (l *lockedBuffer) end() string {
	lines := strings.Split(l.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-30):], "\n")
}
