package socketio

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// The behaviours that the official test suites of the two protocols look for
// (socketio/socket.io, docs/engine.io-protocol/v4-test-suite and
// docs/socket.io-protocol/v5-test-suite), written anew against our server role,
// are in suite_engine_test.go and suite_socket_test.go. They talk to it in bare
// HTTP and WebSocket frames, by what is here.

// bare talks to a server without our client.
type bare struct {
	t    *testing.T
	base string // URL of the endpoint
}

// hasty are the times of the official suites.
var hasty = ServerConfig{
	PingInterval: 300 * time.Millisecond, PingTimeout: 200 * time.Millisecond, ConnectTimeout: 1000 * time.Millisecond,
}

// suiteServer plays the server of the official suites. With times that are not
// hasty, all else can be tested without a heartbeat in between, and what is
// closed was not closed for the want of a pong.
func suiteServer(t *testing.T, cfg ServerConfig) (*Server, bare) {
	s, url := startServer(t, cfg)
	for _, n := range []*Namespace{s.Of("/"), s.Of("/custom")} {
		n.OnConnect(func(s *Socket) {
			auth := s.Auth()
			if auth == nil {
				auth = raw("{}")
			}
			_ = s.Emit(context.Background(), "auth", auth)
		})
		n.On("message", func(s *Socket, e *Event) { _ = s.Emit(context.Background(), "message-back", back(e)...) })
		n.On("message-with-ack", func(_ *Socket, e *Event) { _ = e.Ack(context.Background(), back(e)...) })
	}
	return s, bare{t, url + "/socket.io/"}
}

// do makes a request and returns status and body.
func (b bare) do(method, query, body string) (int, string) {
	b.t.Helper()
	return b.doContext(short(b.t), method, query, body)
}

func (b bare) doContext(ctx context.Context, method, query, body string) (int, string) {
	req, err := http.NewRequestWithContext(ctx, method, b.base+"?"+query, strings.NewReader(body))
	if err != nil {
		b.t.Error(err)
		return 0, ""
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Error(err)
	}
	return resp.StatusCode, string(text)
}

const pollQuery = "EIO=4&transport=polling"

// session opens one over polling and returns the query for it.
func (b bare) session() (sid, query string) {
	b.t.Helper()
	status, body := b.do("GET", pollQuery, "")
	if status != 200 {
		b.t.Fatalf("handshake: %d %s", status, body)
	}
	var h handshake
	if err := json.Unmarshal([]byte(body[1:]), &h); err != nil {
		b.t.Fatal(err)
	}
	return h.SID, pollQuery + "&sid=" + h.SID
}

// polling waits until a GET of the session waits for something to come.
func polling(t *testing.T, s *Server, sid string) {
	t.Helper()
	s.mu.Lock()
	c := s.sessions[sid]
	s.mu.Unlock()
	until(t, "GET", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.polling != nil
	})
}

// heard polls until text has come, and returns all that came.
func (b bare) heard(query, text string) string {
	b.t.Helper()
	var all []string
	for {
		status, body := b.do("GET", query, "")
		if status != 200 {
			b.t.Fatalf("%d %s, after %q", status, body, all)
		}
		all = append(all, body)
		if strings.Contains(body, text) {
			return strings.Join(all, "\x1e")
		}
	}
}

// want checks an answer.
func (b bare) want(method, query, body string, status int, text string) {
	b.t.Helper()
	s, got := b.do(method, query, body)
	if s != status || text != "" && got != text {
		b.t.Fatalf("%s %q: got %d %q, want %d %q", method, body, s, got, status, text)
	}
}

// bareWS is a WebSocket that reads in the background.
type bareWS struct {
	t      *testing.T
	conn   *websocket.Conn
	frames chan frame // closed when the connection is
}

func (b bare) dial(query string) (*bareWS, error) {
	conn, _, err := websocket.Dial(short(b.t), strings.Replace(b.base, "http", "ws", 1)+"?"+query, nil)
	if err != nil {
		return nil, err
	}
	w := &bareWS{b.t, conn, make(chan frame, 100)}
	go func() {
		defer close(w.frames)
		for {
			typ, data, err := conn.Read(context.Background())
			if err != nil {
				return
			}
			w.frames <- frame{data, typ == websocket.MessageBinary}
		}
	}()
	b.t.Cleanup(func() { _ = conn.CloseNow() })
	return w, nil
}

// ws opens a session over WebSocket and takes the handshake.
func (b bare) ws() *bareWS {
	b.t.Helper()
	w, err := b.dial("EIO=4&transport=websocket")
	if err != nil {
		b.t.Fatal(err)
	}
	w.next()
	return w
}

// joined also joins the main namespace.
func (b bare) joined() *bareWS {
	b.t.Helper()
	w := b.ws()
	w.send("40")
	w.next()
	w.expect(`42["auth",{}]`)
	return w
}

func (w *bareWS) send(texts ...string) {
	w.t.Helper()
	for _, s := range texts {
		if err := w.conn.Write(short(w.t), websocket.MessageText, []byte(s)); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *bareWS) sendBinary(p ...byte) {
	w.t.Helper()
	if err := w.conn.Write(short(w.t), websocket.MessageBinary, p); err != nil {
		w.t.Fatal(err)
	}
}

// next is the next frame that is no ping.
func (w *bareWS) next() frame {
	w.t.Helper()
	for {
		f := wait(w.t, w.frames, "frame")
		if f.data == nil {
			w.t.Fatal("the connection was closed")
		}
		if f.binary || string(f.data) != "2" {
			return f
		}
	}
}

func (w *bareWS) expect(texts ...string) {
	w.t.Helper()
	for _, s := range texts {
		if f := w.next(); string(f.data) != s || f.binary {
			w.t.Fatalf("got %q, want %q", f.data, s)
		}
	}
}

func (w *bareWS) expectBinary(p ...byte) {
	w.t.Helper()
	if f := w.next(); !f.binary || !slices.Equal(f.data, p) {
		w.t.Fatalf("got %q, want %x", f.data, p)
	}
}

// closed waits until the server closes.
func (w *bareWS) closed() {
	w.t.Helper()
	for {
		if f := wait(w.t, w.frames, "close"); f.data == nil {
			return
		}
	}
}
