package socketio

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// forwardProxy is an HTTP proxy that tunnels CONNECT and passes plain requests
// on, but drops Upgrade headers as real ones do. It wants a password.
type forwardProxy struct {
	t *testing.T

	mu      sync.Mutex
	methods map[string]int
}

func startForwardProxy(t *testing.T) (*forwardProxy, *url.URL) {
	p := &forwardProxy{t: t, methods: map[string]int{}}
	h := httptest.NewServer(p)
	t.Cleanup(h.Close)
	u, err := url.Parse(h.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("me", "secret")
	return p, u
}

func (p *forwardProxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.methods[r.Method]++
	p.mu.Unlock()
	if r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte("me:secret")) {
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	if r.Method != http.MethodConnect {
		r.RequestURI = ""
		r.Header.Del("Upgrade")
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer func() { _ = resp.Body.Close() }()
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
		return
	}
	up, err := net.Dial("tcp", r.Host)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	down, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		p.t.Error(err)
		return
	}
	copyAndClose := func(to, from net.Conn) {
		_, _ = io.Copy(to, from)
		_ = to.Close()
		_ = from.Close()
	}
	var wg sync.WaitGroup
	wg.Go(func() { copyAndClose(up, down) })
	copyAndClose(down, up)
	wg.Wait()
}

func TestProxy(t *testing.T) {
	s, plain := startServer(t, ServerConfig{})
	echo(s.Of("/"))
	secure := httptest.NewTLSServer(s)
	defer secure.Close()
	for name, v := range map[string]struct{ url, transport, method string }{
		"websocket":          {plain, WebSocket, "CONNECT"},
		"polling":            {plain, Polling, "GET"},
		"websocket over TLS": {secure.URL, WebSocket, "CONNECT"},
		"polling over TLS":   {secure.URL, Polling, "CONNECT"},
	} {
		t.Run(name, func(t *testing.T) {
			p, proxy := startForwardProxy(t)
			c := startClient(t, Config{
				URL: v.url, Transports: []string{v.transport}, Proxy: http.ProxyURL(proxy),
				TLS: &tls.Config{RootCAs: secure.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs},
			})
			c.connect(t)
			if _, err := c.EmitAck(short(t), "echo"); err != nil {
				t.Fatal(err)
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.methods[v.method] == 0 {
				t.Errorf("the proxy saw %v, want %s", p.methods, v.method)
			}
			c.stop()
		})
	}
	t.Run("refused", func(t *testing.T) {
		_, proxy := startForwardProxy(t)
		proxy.User = nil
		c := startClient(t, Config{URL: plain, Transports: []string{WebSocket}, Proxy: http.ProxyURL(proxy)})
		var h *HandshakeError
		if err := wait(t, c.errors, "error"); !errors.As(err, &h) || h.Status != 407 || !strings.Contains(err.Error(), "proxy") {
			t.Fatalf("got %v", err)
		}
	})
}

// clientCert makes a certificate that signs itself.
func clientCert(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "agent"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestTLS(t *testing.T) {
	s, _ := startServer(t, ServerConfig{})
	echo(s.Of("/"))
	cert := clientCert(t)
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	h := httptest.NewUnstartedServer(s)
	h.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12}
	h.Config.ErrorLog = log.New(io.Discard, "", 0) // refusals are expected
	h.EnableHTTP2 = true                           // which a WebSocket must not be offered
	h.StartTLS()
	defer h.Close()
	roots := h.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	every(t, func(t *testing.T, transports []string) {
		c := startClient(t, Config{
			URL: h.URL, Transports: transports, TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
		})
		c.connect(t)
		if _, err := c.EmitAck(short(t), "echo"); err != nil {
			t.Fatal(err)
		}
		c.stop()
		unknown := startClient(t, Config{URL: h.URL, Transports: transports})
		var bad *tls.CertificateVerificationError
		if err := wait(t, unknown.errors, "error"); !errors.As(err, &bad) {
			t.Fatalf("a server that nobody vouches for: %v", err)
		}
		unknown.stop()
		nameless := startClient(t, Config{URL: h.URL, Transports: transports, TLS: &tls.Config{RootCAs: roots}})
		if err := wait(t, nameless.errors, "error"); !strings.Contains(err.Error(), "certificate required") {
			t.Fatalf("without a client certificate: %v", err)
		}
		nameless.stop()
	})
}

// TestRequests: what every request of a client carries.
func TestRequests(t *testing.T) {
	every(t, func(t *testing.T, transports []string) {
		var mu sync.Mutex
		var seen []*http.Request
		s, _ := startServer(t, ServerConfig{Faults: Faults{Request: func(w http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			seen = append(seen, r.Clone(context.Background()))
			if r.URL.Query().Get("sid") == "" {
				http.SetCookie(w, &http.Cookie{Name: "server", Value: "3"})
			}
			return false
		}}})
		echo(s.Of("/"))
		h := httptest.NewServer(s)
		defer h.Close()
		c := startClient(t, Config{
			URL: h.URL + "/?tenant=7", Path: "my/path", Transports: transports,
			Header: func(context.Context) (http.Header, error) { return http.Header{"X-Token": {"t"}}, nil },
		})
		c.connect(t)
		if _, err := c.EmitAck(short(t), "echo"); err != nil {
			t.Fatal(err)
		}
		s.Drop()
		c.connect(t) // now with the cookie from the first time
		c.stop()
		mu.Lock()
		defer mu.Unlock()
		for i, r := range seen {
			cookie, _ := r.Cookie("server")
			if r.URL.Path != "/my/path/" || r.URL.Query().Get("tenant") != "7" || r.URL.Query().Get("EIO") != "4" ||
				r.Header.Get("X-Token") != "t" || r.Header.Get("Origin") != "" || i > 0 && cookie == nil {
				t.Errorf("request %d: %s %s %v", i, r.Method, r.URL, r.Header)
			}
		}
	})
}

func TestFallback(t *testing.T) {
	t.Run("server without WebSocket", func(t *testing.T) {
		s, url := startServer(t, ServerConfig{Transports: []string{Polling}})
		echo(s.Of("/"))
		c := startClient(t, Config{URL: url})
		c.connect(t)
		if _, err := c.EmitAck(short(t), "echo"); err != nil || c.Transport() != Polling {
			t.Fatalf("on %s: %v", c.Transport(), err)
		}
	})
	t.Run("WebSockets go in but nothing comes out", func(t *testing.T) {
		probed := make(chan struct{}, 1)
		s, url := startServer(t, ServerConfig{Faults: Faults{Request: func(_ http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("transport") != WebSocket {
				return false
			}
			if r.URL.Query().Get("sid") != "" {
				select {
				case probed <- struct{}{}:
				default: // the connection was opened a second time
				}
			}
			<-r.Context().Done()
			return true
		}}})
		echo(s.Of("/"))
		c := startClient(t, Config{URL: url, ConnectTimeout: 400 * time.Millisecond})
		c.connect(t)
		wait(t, probed, "upgrade")
		if _, err := c.EmitAck(short(t), "echo"); err != nil || c.Transport() != Polling {
			t.Fatalf("on %s: %v", c.Transport(), err)
		}
		c.stop()
	})
}

// TestPollingPostsAreSmall: Python drops a POST of more than 16 frames, and
// both servers one larger than maxPayload.
func TestPollingPostsAreSmall(t *testing.T) {
	most, largest := 0, 0
	var mu sync.Mutex
	s, url := startServer(t, ServerConfig{MaxPayload: 2000, Faults: Faults{Request: func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			mu.Lock()
			defer mu.Unlock()
			most = max(most, bytes.Count(body, []byte{separator})+1)
			largest = max(largest, len(body))
		}
		return false
	}}})
	echo(s.Of("/"))
	c := startClient(t, Config{URL: url, Transports: []string{Polling}})
	c.connect(t)
	for i := range 300 {
		args := []any{i, strings.Repeat("x", i)}
		for range i % 11 {
			args = append(args, Binary(strings.Repeat("b", i)))
		}
		if err := c.Emit(short(t), "e", args...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.EmitAck(short(t), "echo"); err != nil || len(c.disconnects) != 0 {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if most > maxPollFrames || largest > 2000 || most < 2 {
		t.Errorf("%d frames, %d bytes in one POST", most, largest)
	}
}
