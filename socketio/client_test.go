package socketio

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
)

func TestEcho(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	echo(s.Of("/"))
	every(t, func(t *testing.T, transports []string) {
		c := startClient(t, Config{URL: url, Transports: transports})
		c.connect(t)
		m, err := c.EmitAck(short(t), "echo", 1, "two", raw(`{"n":12345678901234567890.10}`), Binary{1, 2, 3}, map[string]any{"b": Binary{4}})
		if err != nil {
			t.Fatal(err)
		}
		want := `1 "two" {"n":12345678901234567890.10} <010203> {"b":{"_placeholder":true,"num":1}}`
		if got := text(m); got != want {
			t.Fatalf("got  %s\nwant %s", got, want)
		}
		if err := c.Emit(short(t), "echo", "hi"); err != nil {
			t.Fatal(err)
		}
		if e := wait(t, c.events, "echo"); text(e.Message) != `"hi"` {
			t.Fatalf("got %s", text(e.Message))
		}
	})
}

// scripted is a WebSocket server that sends frames and then lets f go on.
func scripted(t *testing.T, open string, frames []string, f func(ctx context.Context, c *websocket.Conn)) string {
	t.Helper()
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for _, s := range append([]string{open}, frames...) {
			if c.Write(r.Context(), websocket.MessageText, []byte(s)) != nil {
				return
			}
		}
		f(r.Context(), c)
	}))
	t.Cleanup(h.Close)
	return h.URL
}

const goodOpen = `0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000}`

// readAll reads until the connection ends.
func readAll(ctx context.Context, c *websocket.Conn) {
	for {
		if _, _, err := c.Read(ctx); err != nil {
			return
		}
	}
}

func TestEventsBeforeConnectAnswerSurvive(t *testing.T) {
	url := scripted(t, goodOpen, []string{`42["a",1]`, `42["b",2]`, `40{"sid":"x"}`, `42["c",3]`}, readAll)
	var mu sync.Mutex
	var order []string
	done := make(chan struct{})
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		if order = append(order, s); s == "c" {
			close(done)
		}
	}
	startClient(t, Config{URL: url, Transports: []string{WebSocket}}, func(c *Client) {
		c.OnConnect(func(context.Context, Connection) { note("connect") })
		c.OnAny(func(_ context.Context, e *Event) { note(e.Name) })
	})
	wait(t, done, "last event")
	if got := strings.Join(order, " "); got != "connect a b c" {
		t.Fatalf("got %s", got)
	}
}

func TestBadServers(t *testing.T) {
	for name, v := range map[string]struct {
		frames []string
		want   string
	}{
		"version 2":           {[]string{"40"}, "Socket.IO 2"},
		"garbage":             {[]string{"xyz"}, "unknown packet type"},
		"garbage in message":  {[]string{"4xyz"}, "unknown packet type"},
		"event without name":  {[]string{`40{"sid":"x"}`, "42[]"}, "no name"},
		"attachment missing":  {[]string{`40{"sid":"x"}`, `451-["a",0]`, `42["b"]`}, "attachments are missing"},
		"close":               {[]string{"1"}, errTransportClosed.Error()},
		"answer not JSON":     {[]string{"40{"}, "not JSON"},
		"sid not text":        {[]string{`40{"sid":7}`}, "answer to CONNECT"},
		"refused by a string": {[]string{`44"go away"`}, "go away"},
		"large":               {[]string{"4" + strings.Repeat("x", 3000)}, "too big"},
		"flood before answer": {repeat(`42["a"]`, maxEarly+1), "before the answer"},
	} {
		t.Run(name, func(t *testing.T) {
			url := scripted(t, goodOpen, v.frames, readAll)
			c := startClient(t, Config{URL: url, Transports: []string{WebSocket}, MaxMessage: 2000})
			// The writer of CONNECT may be the first to see the connection end; the
			// client comes again.
			end := time.After(soon)
			for err := error(nil); err == nil || !strings.Contains(err.Error(), v.want); {
				last := err
				select {
				case err = <-c.errors:
				case err = <-c.disconnects:
				case <-end:
					t.Fatalf("got %v, want %s", last, v.want)
				}
			}
		})
	}
}

func repeat(s string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = s
	}
	return all
}

func TestPanicIsCaught(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	echo(s.Of("/"))
	c := startClient(t, Config{URL: url}, func(c *Client) {
		c.On("echo", func(context.Context, *Event) { panic("ouch") })
	})
	c.connect(t)
	if err := c.Emit(short(t), "echo", 1); err != nil {
		t.Fatal(err)
	}
	var p *HandlerPanic
	if err := wait(t, c.errors, "panic"); !errors.As(err, &p) || p.Value != "ouch" || len(p.Stack) == 0 {
		t.Fatalf("got %v", err)
	}
	if _, err := c.EmitAck(short(t), "echo", 1); err != nil || len(c.disconnects) != 0 {
		t.Fatalf("the connection did not go on: %v", err)
	}
}

// TestHandlersAreOrderedAndMayWait: a handler waits for an ack, and those
// behind it wait for it.
func TestHandlersAreOrderedAndMayWait(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	echo(s.Of("/"))
	s.Of("/").OnConnect(func(s *Socket) {
		for i := range 50 {
			_ = s.Emit(context.Background(), "n", i)
		}
	})
	every(t, func(t *testing.T, transports []string) {
		got := make(chan string, 50)
		c := startClient(t, Config{URL: url, Transports: transports}, func(c *Client) {
			c.On("n", func(ctx context.Context, e *Event) {
				m, err := c.EmitAck(ctx, "echo", e.Arg(0))
				if err != nil {
					t.Error(err)
				}
				got <- text(m)
			})
		})
		c.connect(t)
		for i := range 50 {
			if n := wait(t, got, "number"); n != strconv.Itoa(i) {
				t.Fatalf("%s came in place %d", n, i)
			}
		}
	})
}

func TestAcks(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	late := make(chan *Event, 1)
	s.Of("/").On("late", func(_ *Socket, e *Event) { late <- e })
	s.Of("/").On("twice", func(_ *Socket, e *Event) {
		_ = e.Ack(context.Background(), 1)
		if e.Ack(context.Background(), 2) == nil {
			t.Error("a second ack was sent")
		}
	})
	c := startClient(t, Config{URL: url, AckTimeout: 50 * time.Millisecond})
	c.connect(t)
	for _, e := range []string{"nobody", "late"} {
		if _, err := c.EmitAck(short(t), e); !errors.Is(err, ErrAckTimeout) {
			t.Errorf("got %v", err)
		}
	}
	c.cfg.AckTimeout = soon // for what is answered
	if err := wait(t, late, "event").Ack(context.Background(), "too late"); err != nil {
		t.Error(err)
	}
	if m, err := c.EmitAck(short(t), "twice"); err != nil || text(m) != "1" {
		t.Errorf("got %s, %v", text(m), err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.EmitAck(ctx, "nobody"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := c.Emit(short(t), "disconnect"); err == nil || !strings.Contains(err.Error(), "reserved") {
		t.Errorf("got %v", err)
	}
	if n := len(c.live.Load().port.waiting); n != 0 {
		t.Errorf("%d acks are still awaited", n)
	}
}

func TestAckAfterTheConnectionIsGone(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	s.Of("/").OnConnect(func(s *Socket) {
		go func() { _, _ = s.EmitAck(context.Background(), "q") }() // ends with the connection
	})
	c := startClient(t, Config{URL: url})
	c.connect(t)
	e := wait(t, c.events, "event")
	if !e.WantsAck() {
		t.Fatal("no ack is wanted")
	}
	s.Drop()
	_ = wait(t, c.disconnects, "disconnect")
	c.connect(t)
	if err := e.Ack(context.Background(), 1); !errors.Is(err, ErrDisconnected) {
		t.Fatalf("got %v", err)
	}
}

func TestAuthMustBeAnObject(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	got := make(chan string, 10)
	s.Of("/").OnConnect(func(s *Socket) { got <- string(s.Auth()) })
	for want, v := range map[string]any{
		"": nil, `{"a":12345678901234567890}`: map[string]any{"a": raw("12345678901234567890")}, "error": []int{1}, "error too": "text",
	} {
		c := startClient(t, Config{URL: url, Auth: func(context.Context) (any, error) { return v, nil }})
		if strings.HasPrefix(want, "error") {
			if err := wait(t, c.errors, "error"); !strings.Contains(err.Error(), "JSON object") {
				t.Errorf("%v: got %v", v, err)
			}
		} else if auth := wait(t, got, "connection"); auth != want {
			t.Errorf("%v: got %s", v, auth)
		}
		c.stop()
	}
}

// TestBackPressure: a server that does not read makes Emit wait, and memory
// stays bounded.
func TestBackPressure(t *testing.T) {
	release := make(chan struct{})
	url := scripted(t, strings.Replace(goodOpen, "1000}", "100000000}", 1), []string{`40{"sid":"x"}`}, func(ctx context.Context, c *websocket.Conn) {
		<-release
		c.SetReadLimit(-1)
		readAll(ctx, c)
	})
	c := startClient(t, Config{URL: url, Transports: []string{WebSocket}, SendBuffer: 64 << 10, WriteTimeout: soon})
	c.connect(t)
	block := strings.Repeat("x", 1<<20)
	sent := 0
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		err := c.Emit(ctx, "e", block)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		if sent++; err != nil || sent > 64 { // the kernel holds a few MiB
			t.Fatalf("after %d MiB: %v", sent, err)
		}
	}
	close(release)
	if err := c.Emit(short(t), "e", block); err != nil {
		t.Fatal(err)
	}
}

func TestWriteTimeout(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	url := scripted(t, strings.Replace(goodOpen, "1000}", "100000000}", 1), []string{`40{"sid":"x"}`}, func(context.Context, *websocket.Conn) { <-release })
	c := startClient(t, Config{URL: url, Transports: []string{WebSocket}, WriteTimeout: 200 * time.Millisecond})
	c.connect(t)
	block := strings.Repeat("x", 1<<20)
	var err error
	for range 64 {
		if err = c.Emit(short(t), "e", block); err != nil {
			break
		}
	}
	if !errors.Is(err, ErrDisconnected) {
		t.Fatalf("got %v", err)
	}
	if err := wait(t, c.disconnects, "disconnect"); !strings.Contains(err.Error(), "timeout") {
		t.Fatalf("got %v", err)
	}
}

// TestEndIsTidy: what is in line when Run ends is written, the server hears
// of the end at once, and nothing is left (goleak).
func TestEndIsTidy(t *testing.T) {
	every(t, func(t *testing.T, transports []string) {
		s, url := startServer(t, ServerConfig{})
		var got atomic.Int64
		left := make(chan error, 10)
		s.Of("/").OnAny(func(*Socket, *Event) { got.Add(1) })
		s.Of("/").OnDisconnect(func(_ *Socket, err error) { left <- err })
		c := startClient(t, Config{URL: url, Transports: transports, CloseTimeout: soon})
		c.connect(t)
		for range 100 {
			if err := c.Emit(short(t), "e"); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		c.stop()
		if d := time.Since(begin); d > soon/2 {
			t.Errorf("Run took %v to end", d) // as if CloseTimeout had to pass
		}
		if err := wait(t, left, "goodbye"); !errors.Is(err, errTransportClosed) {
			t.Errorf("the server saw %v", err)
		}
		if got.Load() != 100 {
			t.Errorf("%d of 100 arrived", got.Load())
		}
		if err := wait(t, c.disconnects, "disconnect"); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
		if len(c.disconnects) != 0 {
			t.Error("disconnected twice")
		}
		if c.Connected() || c.Transport() != "" || c.MaxPayload() != defaultMaxPayload {
			t.Error("it still seems connected")
		}
		if err := c.Emit(short(t), "e"); !errors.Is(err, ErrDisconnected) {
			t.Errorf("got %v", err)
		}
		if err := c.Run(short(t)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run a second time: %v", err)
		}
	})
}
