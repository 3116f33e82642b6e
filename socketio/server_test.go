package socketio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRooms(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	n := s.Of("/r")
	joined := make(chan *Socket, 10)
	n.On("join", func(s *Socket, e *Event) {
		var room string
		for _, a := range e.Args {
			room = strings.Trim(string(a), `"`)
			s.Join(room)
		}
		_ = e.Ack(context.Background())
		joined <- s
	})
	var clients []*client
	var sockets []*Socket
	for i := range 3 {
		c := startClient(t, Config{URL: url, Namespace: "/r", Transports: []string{[]string{WebSocket, Polling}[i%2]}})
		c.connect(t)
		rooms := []any{"all", fmt.Sprint(i)}
		if _, err := c.EmitAck(short(t), "join", rooms...); err != nil {
			t.Fatal(err)
		}
		clients, sockets = append(clients, c), append(sockets, wait(t, joined, "join"))
	}
	say := func(room string, except *Socket, what string) {
		t.Helper()
		if err := n.Broadcast(room, except, "said", what, Binary(what)); err != nil {
			t.Fatal(err)
		}
	}
	say("1", nil, "a")
	say("all", sockets[0], "b")
	sockets[2].Leave("all")
	say("all", nil, "c")
	say("nobody", nil, "d")
	say("", nil, "e")
	if got := len(n.Sockets("all")); got != 2 {
		t.Errorf("%d in the room", got)
	}
	for i, want := range []string{"ce", "abce", "be"} {
		for _, w := range want {
			if e := wait(t, clients[i].events, "broadcast"); text(e.Message) != fmt.Sprintf(`"%c" <%x>`, w, string(w)) {
				t.Errorf("client %d got %s, want %c", i, text(e.Message), w)
			}
		}
	}
	for _, c := range clients {
		c.stop()
	}
	gone(t, s)
	until(t, "end of the sockets", func() bool { return len(n.Sockets("")) == 0 })
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.rooms) != 0 {
		t.Errorf("rooms are left: %v", n.rooms)
	}
}

func TestServerAuth(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	s.Of("/").Auth(func(s *Socket) error {
		if s.Request().Header.Get("X-Key") != "k" {
			return &ConnectError{Message: "no key", Data: raw(`{"need":"X-Key"}`)}
		}
		if string(s.Auth()) != `{"token":"t"}` {
			return errors.New("bad token")
		}
		return nil
	})
	token := map[string]string{"token": "t"}
	auth := func(v any) func(context.Context) (any, error) {
		return func(context.Context) (any, error) { return v, nil }
	}
	c := startClient(t, Config{URL: url, Auth: auth(token)})
	var refused *ConnectError
	if err := wait(t, c.errors, "error"); !errors.As(err, &refused) || refused.Message != "no key" || string(refused.Data) != `{"need":"X-Key"}` {
		t.Fatalf("got %#v", err)
	}
	c.stop()
}

// TestServerCallsInPairs: OnDisconnect once for each OnConnect, whoever ends.
func TestServerCallsInPairs(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	ins, outs := make(chan *Socket, 100), make(chan error, 100)
	s.Of("/").OnConnect(func(s *Socket) { ins <- s })
	s.Of("/").OnDisconnect(func(_ *Socket, err error) { outs <- err })
	every(t, func(t *testing.T, transports []string) {
		c := startClient(t, Config{URL: url, Transports: transports})
		for _, v := range []struct {
			end  func(*Socket)
			want error
		}{
			{func(s *Socket) { s.Disconnect(false); s.Disconnect(false) }, ErrServerDisconnect},
			{func(s *Socket) { s.Disconnect(true) }, ErrServerDisconnect},
			{func(*Socket) { s.Drop() }, nil},
			{func(*Socket) { c.stop() }, errTransportClosed},
		} {
			c.connect(t)
			sock := wait(t, ins, "connection")
			v.end(sock)
			if err := wait(t, outs, "disconnect"); v.want != nil && !errors.Is(err, v.want) {
				t.Errorf("got %v, want %v", err, v.want)
			}
			if err := sock.Emit(short(t), "e"); !errors.Is(err, ErrDisconnected) {
				t.Errorf("emit to one who has left: %v", err)
			}
		}
		if len(ins) != 0 || len(outs) != 0 {
			t.Errorf("%d more connects, %d more disconnects", len(ins), len(outs))
		}
	})
}

func TestServerDropsSlowClientAtBroadcast(t *testing.T) {
	s, url := startServer(t, ServerConfig{SendBuffer: 1 << 20, WriteTimeout: time.Minute})
	out := make(chan error, 1)
	s.Of("/").OnDisconnect(func(_ *Socket, err error) { out <- err })
	_, b := s, bare{t, url + "/socket.io/"}
	_, q := b.session() // joins, and never polls
	b.want("POST", q, "40", 200, "ok")
	until(t, "CONNECT", func() bool { return len(s.Of("/").Sockets("")) > 0 })
	block := strings.Repeat("x", 300_000)
	for range 10 {
		if err := s.Of("/").Broadcast("", nil, "e", block); err != nil {
			t.Fatal(err)
		}
	}
	if err := wait(t, out, "disconnect"); !errors.Is(err, errSlow) {
		t.Fatalf("got %v", err)
	}
}

func TestFaults(t *testing.T) {
	t.Run("silent", func(t *testing.T) {
		_, url := startServer(t, ServerConfig{
			PingInterval: 50 * time.Millisecond, PingTimeout: 50 * time.Millisecond,
			Faults: Faults{Silent: func(string) bool { return true }},
		})
		c := startClient(t, Config{URL: url})
		c.connect(t)
		if err := wait(t, c.disconnects, "disconnect"); !errors.Is(err, ErrHeartbeat) {
			t.Fatalf("got %v", err)
		}
		c.connect(t)
	})
	t.Run("mute", func(t *testing.T) {
		var asked onceFlag
		_, url := startServer(t, ServerConfig{Faults: Faults{Mute: func(string) bool { return asked.first() }}})
		c := startClient(t, Config{URL: url, ConnectTimeout: time.Second})
		if err := wait(t, c.errors, "error"); !errors.Is(err, ErrConnectTimeout) {
			t.Fatalf("got %v", err)
		}
		c.connect(t)
	})
}

func TestServerAfterClose(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	c := startClient(t, Config{URL: url})
	c.connect(t)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = wait(t, c.disconnects, "disconnect")
	var h *HandshakeError
	if err := wait(t, c.errors, "error"); !errors.As(err, &h) || h.Status != 403 {
		t.Fatalf("got %v", err)
	}
}

// TestRealClientAgainstOurServer runs Node's socket.io-client against the
// server role: it says on its output what went wrong.
func TestRealClientAgainstOurServer(t *testing.T) {
	script := filepath.Join("..", "integration", "backends", "node", "client.mjs")
	if _, err := os.Stat(filepath.Join(filepath.Dir(script), "node_modules", "socket.io-client")); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("Node's socket.io-client is not installed: run integration/setup.sh")
		}
		t.Skip("SKIPPED, NOT TESTED: Node's socket.io-client is not installed: run integration/setup.sh")
	}
	s, url := startServer(t, ServerConfig{PingInterval: 200 * time.Millisecond})
	for _, n := range []*Namespace{s.Of("/"), s.Of("/admin")} {
		echo(n)
		n.On("join", func(s *Socket, e *Event) {
			s.Join("room")
			_ = e.Ack(context.Background())
		})
		n.On("say", func(s *Socket, e *Event) { _ = s.namespace.Broadcast("room", nil, "said", back(e)...) })
	}
	s.Of("/guarded").Auth(func(s *Socket) error {
		if string(s.Auth()) != `{"token":"good"}` {
			return &ConnectError{Message: "bad token", Data: raw(`{"hint":"say good"}`)}
		}
		return nil
	})
	for name, transports := range map[string]string{"websocket": "websocket", "polling": "polling", "upgrade": "polling,websocket"} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(short(t), "node", script, url, transports)
			if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "ok" {
				t.Fatalf("%v\n%s", err, out)
			}
		})
	}
}
