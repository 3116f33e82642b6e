package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	"deployx/integration/backends"
)

// insist sends an event until it is acknowledged, as one does who must not lose
// it, and says how often it was sent.
func insist(t testing.TB, c *client, event string, args ...any) int {
	t.Helper()
	for tries := 1; ; tries++ {
		_, err := c.EmitAck(short(t), event, args...)
		if err == nil {
			return tries
		}
		if !errors.Is(err, ErrDisconnected) {
			t.Fatalf("%s %v: %v", event, args, err)
		}
		if !c.Connected() {
			c.connect(t)
		}
	}
}

// withoutRepeats wants a JSON list of 0 to n-1, in which one that was sent
// again may stand again.
func withoutRepeats(t testing.TB, list json.RawMessage, n int) (repeats int) {
	t.Helper()
	var got []int
	if err := json.Unmarshal(list, &got); err != nil {
		t.Fatal(err)
	}
	next := 0
	for _, v := range got {
		switch v {
		case next:
			next++
		case next - 1:
			repeats++
		default:
			t.Fatalf("%d came where %d was due", v, next)
		}
	}
	if next != n {
		t.Fatalf("%d of %d arrived", next, n)
	}
	return repeats
}

func TestRealCutEvery300ms(t *testing.T) {
	for _, kind := range backends.Kinds() {
		t.Run(kind, func(t *testing.T) {
			b := backends.Start(t, kind)
			p := backends.NewProxy(t, b.Addr())
			c := startClient(t, Config{URL: p.URL()})
			c.connect(t)
			cut := make(chan struct{})
			go func() {
				defer close(cut)
				p.CutEvery(300*time.Millisecond, 10)
			}()
			sent, again := 0, 0
			for done := false; !done; sent++ {
				select {
				case <-cut:
					done = true
				default:
				}
				again += insist(t, c, "item", sent) - 1
				_ = c.Emit(short(t), "flood", 5) // load the other way; may be lost
			}
			// The server is asked over a connection that nobody cuts.
			d := startClient(t, Config{URL: b.URL()})
			d.connect(t)
			m, err := d.EmitAck(short(t), "seen")
			if err != nil {
				t.Fatal(err)
			}
			repeats := withoutRepeats(t, m.Arg(0), sent)
			if len(c.disconnects) == 0 {
				t.Error("nothing was cut")
			}
			t.Logf("%d acked, %d sent again, %d of them had arrived, %d disconnects", sent, again, repeats, len(c.disconnects))
			c.stop()
			onceEach(t, c)
		})
	}
}

// onceEach wants as many disconnects as connections. Call it after stop.
func onceEach(t testing.TB, c *client) {
	t.Helper()
	c.connected += len(c.connects)
	if got := len(c.disconnects); got != c.connected {
		t.Errorf("%d connections, %d disconnects", c.connected, got)
	}
}

func TestRealServerKilledAndRestarted(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Transports: transports})
		c.connect(t)
		for i := range 3 {
			insist(t, c, "item", i)
			lost := make(chan error, 1)
			go func() {
				for { // one of these is waiting when the server goes
					if _, err := c.EmitAck(context.Background(), "echo"); err != nil {
						lost <- err
						return
					}
				}
			}()
			b.Kill()
			if err := wait(t, lost, "error of the call under way"); !errors.Is(err, ErrDisconnected) {
				t.Errorf("the call under way ended by %v", err)
			}
			if err := c.Emit(short(t), "echo"); err != nil && !errors.Is(err, ErrDisconnected) {
				t.Errorf("emit without a server: %v", err)
			}
			b.Restart(t)
			c.connect(t)
		}
		insist(t, c, "echo")
	})
}

func TestRealFrozenServer(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Transports: transports, CloseTimeout: 100 * time.Millisecond})
		c.connect(t)
		insist(t, c, "echo")
		b.Freeze(t)
		if _, err := c.EmitAck(short(t), "echo"); !errors.Is(err, ErrDisconnected) { // patience is 2 s, not short's 20 s
			t.Errorf("a frozen server answered: %v", err)
		}
		if err := wait(t, c.disconnects, "disconnect"); !errors.Is(err, ErrHeartbeat) {
			t.Errorf("disconnected by %v", err)
		}
		b.Thaw(t)
		insist(t, c, "echo")
	}, "PING_INTERVAL=1000", "PING_TIMEOUT=1000")
}

func TestRealFrozenServerDoesNotHoldUpTheEnd(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Transports: transports, CloseTimeout: 200 * time.Millisecond})
		c.connect(t)
		b.Freeze(t)
		defer b.Thaw(t)
		filled, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		big := make([]byte, 100_000)
		for c.Emit(filled, "item", big) == nil { // until every buffer on the way is full
		}
		begin := time.Now()
		c.stop()
		if d := time.Since(begin); d > 4*time.Second { // a polite close of a WebSocket would take 5 s
			t.Errorf("Run took %v to end", d)
		}
	})
}

func TestRealHeartbeat(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Transports: transports})
		c.connect(t)
		time.Sleep(2500 * time.Millisecond) // the only thing to wait for is that nothing happens
		if len(c.disconnects) != 0 {
			t.Fatalf("an idle connection was lost: %v", <-c.disconnects)
		}
		insist(t, c, "echo")
	}, "PING_INTERVAL=200", "PING_TIMEOUT=1000")
}

func TestRealHandshakeRefused20Times(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		p := backends.NewProxy(t, b.Addr())
		p.Refuse(20, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy")
		c := startClient(t, Config{URL: p.URL(), Transports: transports})
		c.connect(t)
		if p.Refused() != 20 {
			t.Errorf("%d refused", p.Refused())
		}
		var h *HandshakeError
		if err := wait(t, c.errors, "error"); !errors.As(err, &h) || h.Status != 503 || h.Body != "busy" {
			t.Errorf("got %v", err)
		}
		insist(t, c, "echo")
	})
}

func TestRealUnauthorizedThenGoodToken(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		p := backends.NewProxy(t, b.Addr())
		p.Refuse(1, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		asked := 0
		c := startClient(t, Config{
			URL: p.URL(), Transports: transports,
			Header: func(context.Context) (http.Header, error) {
				asked++
				return http.Header{"Authorization": {fmt.Sprintf("Bearer %d", asked)}}, nil
			},
		})
		c.connect(t)
		if asked != 2 {
			t.Errorf("headers were asked for %d times, want 2", asked)
		}
		var h *HandshakeError
		if err := wait(t, c.errors, "error"); !errors.As(err, &h) || h.Status != 401 {
			t.Errorf("got %v", err)
		}
	})
}

func TestRealHandshakeThatIsNotJSON(t *testing.T) {
	const page = "<html>please log in</html>"
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		p := backends.NewProxy(t, b.Addr())
		p.Refuse(4, fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(page), page))
		c := startClient(t, Config{URL: p.URL(), Transports: transports})
		c.connect(t)
		var h *HandshakeError
		if err := wait(t, c.errors, "error"); !errors.As(err, &h) || h.Status != 200 || h.Body != page {
			t.Errorf("got %v", err)
		}
		insist(t, c, "echo")
	})
}
