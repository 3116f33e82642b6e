package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"deployx/internal/heard"
	"deployx/socketio"
)

// home is our server role as a backend.
type home struct {
	t       *testing.T
	srv     *socketio.Server
	events  heard.Log[got]
	sockets chan *socketio.Socket
}

func newHome(t *testing.T) *home {
	h := &home{t: t, srv: socketio.NewServer(socketio.ServerConfig{}), sockets: make(chan *socketio.Socket, 100)}
	n := h.srv.Of("/")
	n.OnConnect(func(s *socketio.Socket) { h.sockets <- s })
	n.OnAny(func(_ *socketio.Socket, e *socketio.Event) {
		g := got{Event: e.Name}
		if err := json.Unmarshal(e.Arg(0), &g.Payload); err != nil {
			t.Errorf("%s: %v", e.Name, err)
		}
		h.events.Add(g)
		_ = e.Ack(context.Background())
	})
	t.Cleanup(func() { _ = h.srv.Close() })
	return h
}

func (h *home) send(s *socketio.Socket, event string, payload obj) {
	h.t.Helper()
	if err := s.Emit(context.Background(), event, payload); err != nil {
		h.t.Fatal(err)
	}
}

func (h *home) one(event, id string) got {
	h.t.Helper()
	return h.events.Wait(h.t, soon, 1, event+" of "+id, about(event, id))[0]
}

// proxy is an HTTP proxy that wants a password, and the only one that knows
// where a name leads.
type proxy struct {
	t    *testing.T
	to   map[string]string // by host:port
	seen heard.Log[string]
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.seen.Add(r.Method + " " + r.Host)
	to, ok := p.to[r.Host]
	if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("me:s3cret")) || !ok {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	if r.Method == http.MethodConnect {
		p.tunnel(w, to)
		return
	}
	r.RequestURI, r.URL.Host = "", to
	r.Header.Del("Upgrade")
	resp, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

func (p *proxy) tunnel(w http.ResponseWriter, to string) {
	up, err := net.Dial("tcp", to)
	if err != nil {
		p.t.Error(err)
		return
	}
	w.WriteHeader(http.StatusOK)
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.t.Error(err)
		return
	}
	pass := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_ = to.Close()
		_ = from.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() { pass(up, down) })
	pass(down, up)
	wg.Wait()
}

// TestAgentThroughAProxy: HTTP_PROXY and HTTPS_PROXY, which alone lead to the
// backend, on both transports; the proxy's password is not logged.
func TestAgentThroughAProxy(t *testing.T) {
	for _, c := range []struct{ scheme, transport, want string }{
		{"http", "websocket", "CONNECT"}, {"http", "polling", "POST"}, {"https", "websocket", "CONNECT"}, {"https", "polling", "CONNECT"},
	} {
		t.Run(c.scheme+"/"+c.transport, func(t *testing.T) {
			b, h := newHome(t), newHost(t)
			web := httptest.NewUnstartedServer(b.srv)
			args := []string{"--transport", c.transport, "--allow-plaintext"}
			if c.scheme == "https" {
				web.StartTLS()
				ca := filepath.Join(h.dir, "ca.pem")
				writePEM(t, ca, "CERTIFICATE", web.Certificate().Raw)
				args = []string{"--transport", c.transport, "--ca", ca}
			} else {
				web.Start()
			}
			t.Cleanup(web.Close)
			// httptest's certificate is for example.com; the port is not open there.
			const name = "example.com:4444"
			p := &proxy{t: t, to: map[string]string{name: web.Listener.Addr().String()}}
			through := httptest.NewServer(p)
			t.Cleanup(through.Close)
			u, err := url.Parse(through.URL)
			if err != nil {
				t.Fatal(err)
			}
			u.User = url.UserPassword("me", "s3cret")
			h.env = []string{strings.ToUpper(c.scheme) + "_PROXY=" + u.String(), "NO_PROXY="}
			h.run(c.scheme+"://"+name, args...)
			b.send(<-b.sockets, "execute_command", obj{"command_id": "c", "command": "echo through"})
			if done := b.one("command_completed", "c"); !done.ok() || done.str("output") != "through\n" {
				t.Errorf("got %v", done)
			}
			if len(p.seen.Find(func(s string) bool { return s == c.want+" "+name })) == 0 {
				t.Errorf("the proxy saw\n%s", p.seen.Last(10))
			}
			h.stop()
			if strings.Contains(h.said(), "s3cret") {
				t.Error("the proxy's password is in the log")
			}
		})
	}
}

// TestAgentUser: with --user every command and the interactive shell are that
// user's, and nothing of the agent's own environment or rights comes with them.
func TestAgentUser(t *testing.T) {
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	b, h := newHome(t), newHost(t)
	web := httptest.NewServer(b.srv)
	t.Cleanup(web.Close)
	for dir := h.tree(); len(dir) > 1; dir = filepath.Dir(dir) { // nobody has to get there
		if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm()&1 == 0 {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.Chmod(h.tree(), 0o777); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(h.state(), "agent", "journal")
	h.run(web.URL, "--user", "nobody")
	s := <-b.sockets
	command := fmt.Sprintf("id -u; id -un; echo $USER; cat %s >/dev/null 2>&1 && echo reads the journal; touch made", secret)
	want := nobody.Uid + "\nnobody\nnobody\n"
	b.send(s, "execute_command", obj{"command_id": "c", "command": command})
	if done := b.one("command_completed", "c"); done.str("output") != want || !done.ok() {
		t.Errorf("command: %v", done)
	}
	b.send(s, "execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"id -un"}})
	if done := b.one("batch_command_completed", "b"); done.str("output") != "nobody\n" {
		t.Errorf("batch: %v", done)
	}
	b.send(s, "execute_command", obj{"command_id": "sh", "command": "id -un", "shell": "sh"})
	if done := b.one("command_completed", "sh"); done.str("output") != "nobody\n" {
		t.Errorf("in another shell: %v", done)
	}
	b.send(s, "start_shell_request", obj{"shell": "bash"})
	b.one("shell_started", "")
	b.send(s, "command_input", obj{"command": "echo I-$(id -un)-am\n"})
	said := func() (all string) {
		for _, g := range b.events.Find(func(g got) bool { return g.str("stream") == "tty" }) {
			all += g.str("output")
		}
		return all
	}
	b.events.Until(t, soon, "answer of the shell", func() bool { return strings.Contains(said(), "I-nobody-am") })
	b.send(s, "stop_shell_request", obj{})
	b.one("shell_stopped", "")
	if out, err := os.Stat(filepath.Join(h.tree(), "made")); err != nil || fmt.Sprint(uid(out)) != nobody.Uid {
		t.Errorf("made: %v", err)
	}
	// A user that is not there is told at once.
	h.stop()
	out, err := h.command("--url", web.URL, "--tree", h.tree(), "--state", h.state(), "--user", "nosuchuser").CombinedOutput()
	if err == nil || !strings.Contains(string(out), `"nosuchuser"`) {
		t.Errorf("%v: %s", err, out)
	}
}

// TestAgentMemory: at rest the agent takes at most 25 MiB, and at most 64 while
// it streams.
func TestAgentMemory(t *testing.T) {
	b, h := newHome(t), newHost(t)
	web := httptest.NewServer(b.srv)
	t.Cleanup(web.Close)
	var came atomic.Int64
	b.srv.Of("/").On("command_output", func(_ *socketio.Socket, e *socketio.Event) {
		n, _ := outputOf(e.Arg(0))
		came.Add(int64(n))
		_ = e.Ack(context.Background())
	})
	h.run(web.URL, "--log-level", "warn")
	s := <-b.sockets
	b.one("agent_heartbeat", "")
	if rss := h.rss(); rss > 25<<10 {
		t.Errorf("%d KiB at rest", rss)
	}
	const size = 100 << 20
	stop := h.watch()
	b.send(s, "execute_command", obj{"command_id": "c", "command": fmt.Sprintf("yes 'some text, as builds print it' | head -c %d", size)})
	done := b.one("command_completed", "c")
	if rss := stop(); rss > 64<<10 {
		t.Errorf("%d KiB while it streamed", rss)
	}
	if n := came.Load(); n != size || !done.ok() {
		t.Errorf("%d of %d bytes came: %v", n, size, done.Payload["success"])
	}
}
