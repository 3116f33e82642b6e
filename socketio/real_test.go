package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"deployx/integration/backends"
)

// eachReal runs a test against each real server over each transport.
func eachReal(t *testing.T, f func(t *testing.T, b *backends.Backend, transports []string), env ...string) {
	for _, kind := range backends.Kinds() {
		t.Run(kind, func(t *testing.T) {
			b := backends.Start(t, kind, env...)
			every(t, func(t *testing.T, transports []string) { f(t, b, transports) })
		})
	}
}

func TestRealEchoAndAcks(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Transports: transports}, func(c *Client) {
			c.On("question", func(ctx context.Context, e *Event) {
				if err := e.Ack(ctx, append([]any{"answer"}, back(e)...)...); err != nil {
					t.Error(err)
				}
			})
		})
		c.connect(t)
		m, err := c.EmitAck(short(t), "echo", 1, "zwei €\u2028\x1e", nil, map[string]any{"b": Binary{4, 5}}, Binary{0, 255})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(m.Arg(0)) + string(m.Arg(2)); got != "1null" {
			t.Errorf("got %s", text(m))
		}
		var s string
		if err := json.Unmarshal(m.Arg(1), &s); err != nil || s != "zwei €\u2028\x1e" {
			t.Errorf("got %q, %v", s, err)
		}
		if got, err := m.Attachment(m.Arg(4)); err != nil || string(got) != "\x00\xff" || len(m.Attachments) != 2 {
			t.Errorf("binary came back as %x, %v", got, err)
		}
		m, err = c.EmitAck(short(t), "ask", "x", Binary("raw"))
		if err != nil {
			t.Fatal(err)
		}
		if got := text(m); got != `"answer" "x" <726177>` {
			t.Errorf("asked back: %s", got)
		}
		if err := c.Emit(short(t), "bye"); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, c.disconnects, "disconnect"); !errors.Is(err, ErrServerDisconnect) {
			t.Errorf("disconnected by %v", err)
		}
		c.connect(t) // and comes again
	})
}

func TestRealTransportIsUpgraded(t *testing.T) {
	for _, kind := range backends.Kinds() {
		t.Run(kind, func(t *testing.T) {
			b := backends.Start(t, kind)
			c := startClient(t, Config{URL: b.URL(), Transports: []string{Polling, WebSocket}})
			c.connect(t)
			// Traffic all through the move: nothing may be lost or overtaken.
			const n = 500
			for i := range n {
				if err := c.Emit(short(t), "item", i); err != nil {
					t.Fatal(err)
				}
			}
			m, err := c.EmitAck(short(t), "seen")
			if err != nil {
				t.Fatal(err)
			}
			checkOrder(t, m.Arg(0), n)
			for deadline := time.Now().Add(soon); c.Transport() != WebSocket; {
				if _, err := c.EmitAck(short(t), "echo"); err != nil || time.Now().After(deadline) {
					t.Fatalf("still on %q: %v", c.Transport(), err)
				}
			}
			if _, err := c.EmitAck(short(t), "echo"); err != nil {
				t.Fatal(err)
			}
			if len(c.disconnects) != 0 {
				t.Fatalf("disconnected: %v", <-c.disconnects)
			}
		})
	}
}

// checkOrder wants a JSON list of 0 to n-1.
func checkOrder(t testing.TB, list json.RawMessage, n int) {
	t.Helper()
	var got []int
	if err := json.Unmarshal(list, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != n {
		t.Fatalf("%d arrived, %d were sent", len(got), n)
	}
	for i, v := range got {
		if v != i {
			t.Fatalf("number %d arrived in place %d", v, i)
		}
	}
}

func TestRealNamespaces(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Namespace: "/admin", Transports: transports})
		c.connect(t)
		m, err := c.EmitAck(short(t), "echo", Binary("b"), 7)
		if err != nil || text(m) != "<62> 7" {
			t.Fatalf("got %s, %v", text(m), err)
		}
		if err := c.Emit(short(t), "flood", 3); err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			e := wait(t, c.events, "tick")
			for e.Name == "echo" {
				e = wait(t, c.events, "tick")
			}
			if e.Name != "tick" || string(e.Arg(0)) != fmt.Sprint(i) {
				t.Fatalf("got %s %s", e.Name, text(e.Message))
			}
		}
		none := startClient(t, Config{URL: b.URL(), Namespace: "/none", Transports: transports})
		var refused *ConnectError // Node: an object. Python: a bare string
		if err := wait(t, none.errors, "refusal"); !errors.As(err, &refused) || refused.Message == "" {
			t.Fatalf("got %v", err)
		}
		mute := startClient(t, Config{
			URL: b.URL(), Namespace: "/mute", Transports: transports, ConnectTimeout: 300 * time.Millisecond,
		})
		for n := 0; n < 2; { // a busy machine may be too slow to open the transport, too
			err := wait(t, mute.errors, "timeout")
			if errors.Is(err, ErrConnectTimeout) {
				n++
			} else if !strings.Contains(err.Error(), "no answer within") && !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v", err)
			}
		}
	})
}

func TestRealTokenIsAskedAfresh(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		asked := 0
		c := startClient(t, Config{
			URL: b.URL(), Namespace: "/guarded", Transports: transports,
			Auth: func(context.Context) (any, error) {
				asked++
				switch asked {
				case 1:
					return nil, errors.New("no token yet")
				case 2:
					return map[string]string{"token": "bad"}, nil
				}
				return map[string]string{"token": "good"}, nil
			},
		})
		c.connect(t)
		if err := wait(t, c.errors, "error"); !strings.Contains(err.Error(), "no token yet") {
			t.Errorf("first error: %v", err)
		}
		var refused *ConnectError
		if err := wait(t, c.errors, "error"); !errors.As(err, &refused) || refused.Message != "bad token" ||
			!strings.Contains(string(refused.Data), "say good") {
			t.Errorf("second error: %#v", err)
		}
	})
}

func TestRealLargeMessages(t *testing.T) {
	eachReal(t, func(t *testing.T, b *backends.Backend, transports []string) {
		c := startClient(t, Config{URL: b.URL(), Transports: transports})
		c.connect(t)
		for _, size := range []int{1 << 20, 5 << 20} {
			m, err := c.EmitAck(short(t), "text", size)
			if err != nil || len(m.Arg(0)) != size+2 {
				t.Fatalf("%d characters: got %d, %v", size, len(m.Arg(0)), err)
			}
			if m, err = c.EmitAck(short(t), "blob", size); err != nil {
				t.Fatal(err)
			}
			if p, err := m.Attachment(m.Arg(0)); err != nil || len(p) != size || p[size-1] != 7 {
				t.Fatalf("%d bytes: got %d, %v", size, len(p), err)
			}
		}
		// What the server would drop the connection for is refused here.
		if _, err := c.EmitAck(short(t), "echo", strings.Repeat("x", c.MaxPayload())); !errors.Is(err, ErrTooLarge) {
			t.Fatalf("over maxPayload: %v", err)
		}
		if b.Kind == backends.Python && transports[0] == Polling {
			// Its aiohttp driver takes the part of a POST that has arrived for
			// all of it, see pollWrite.
			if m, err := c.EmitAck(short(t), "echo", strings.Repeat("x", 30_000)); err != nil || len(m.Arg(0)) != 30_002 {
				t.Fatalf("30,000 characters: %d, %v", len(m.Arg(0)), err)
			}
			return
		}
		fits := c.MaxPayload() - len(`42999["echo",""]`)
		if m, err := c.EmitAck(short(t), "echo", strings.Repeat("x", fits)); err != nil || len(m.Arg(0)) != fits+2 {
			t.Fatalf("just under maxPayload: %d, %v", len(m.Arg(0)), err)
		}
		if _, err := c.EmitAck(short(t), "echo", Binary(make([]byte, 700_000))); err != nil {
			t.Fatalf("large binary: %v", err)
		}
		if len(c.disconnects) != 0 {
			t.Fatalf("disconnected: %v", <-c.disconnects)
		}
	})
}

// TestRealMegabyteToServer needs a server that takes it.
func TestRealMegabyteToServer(t *testing.T) {
	c := startClient(t, Config{
		URL:        backends.Start(t, backends.Node, "MAX_PAYLOAD=20000000").URL(),
		Transports: []string{WebSocket},
	})
	c.connect(t)
	if c.MaxPayload() != 20_000_000 {
		t.Fatalf("maxPayload %d", c.MaxPayload())
	}
	for _, size := range []int{1 << 20, 10 << 20} {
		m, err := c.EmitAck(short(t), "echo", strings.Repeat("x", size), Binary(make([]byte, size)))
		if err != nil || len(m.Arg(0)) != size+2 || len(m.Attachments[0]) != size {
			t.Fatalf("%d: %v", size, err)
		}
	}
}

func TestRealManySmallEventsInOrder(t *testing.T) {
	const n = 10_000
	for _, kind := range backends.Kinds() {
		t.Run(kind, func(t *testing.T) {
			every(t, func(t *testing.T, transports []string) {
				b := backends.Start(t, kind) // anew: it remembers what it saw
				c := startClient(t, Config{URL: b.URL(), Transports: transports})
				c.connect(t)
				for i := range n {
					if err := c.Emit(short(t), "item", i); err != nil {
						t.Fatal(err)
					}
				}
				m, err := c.EmitAck(short(t), "seen")
				if err != nil {
					t.Fatal(err)
				}
				checkOrder(t, m.Arg(0), n)
				if err := c.Emit(short(t), "flood", n); err != nil {
					t.Fatal(err)
				}
				for i := range n {
					if e := wait(t, c.events, "tick"); string(e.Arg(0)) != fmt.Sprint(i) {
						t.Fatalf("%s arrived in place %d", text(e.Message), i)
					}
				}
			})
		})
	}
}

func TestRealNumbersKeepTheirDigits(t *testing.T) {
	b := backends.Start(t, backends.Python) // Node's numbers are floats
	c := startClient(t, Config{URL: b.URL()})
	c.connect(t)
	big := uint64(math.MaxUint64)
	m, err := c.EmitAck(short(t), "echo", big, raw("123456789012345678901234567890"))
	if err != nil || text(m) != "18446744073709551615 123456789012345678901234567890" {
		t.Fatalf("got %s, %v", text(m), err)
	}
}

func TestRealRecovery(t *testing.T) {
	b := backends.Start(t, backends.Node, "RECOVERY=1")
	p := backends.NewProxy(t, b.Addr())
	other := startClient(t, Config{URL: b.URL()})
	other.connect(t)
	c := startClient(t, Config{URL: p.URL(), Transports: []string{WebSocket}, Backoff: Backoff{
		Min: 300 * time.Millisecond, Max: 300 * time.Millisecond, // so that something is missed
	}})
	first := c.connect(t)
	if first.Recovered {
		t.Fatal("the first connection cannot be recovered")
	}
	if _, err := c.EmitAck(short(t), "join", "room"); err != nil {
		t.Fatal(err)
	}
	say := func(what string) {
		t.Helper()
		if _, err := other.EmitAck(short(t), "say", "room", what); err != nil {
			t.Fatal(err)
		}
	}
	said := func(what string) {
		t.Helper()
		if e := wait(t, c.events, what); string(e.Arg(0)) != `"`+what+`"` {
			t.Fatalf("got %s, want %s", text(e.Message), what)
		}
	}
	say("before")
	said("before")
	p.Cut()
	_ = wait(t, c.disconnects, "cut")
	say("missed 1")
	say("missed 2")
	again := c.connect(t)
	if !again.Recovered || again.ID != first.ID {
		t.Fatalf("not recovered: %+v after %+v", again, first)
	}
	said("missed 1")
	said("missed 2")
	say("after") // still in the room
	said("after")
}
