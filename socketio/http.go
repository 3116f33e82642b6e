package socketio

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"strings"
	"time"
)

// newHTTPClient makes the one client that both transports use: HTTP/1.1 (a
// WebSocket cannot be had otherwise), the caller's TLS settings and proxy, and
// a cookie jar for load balancers that keep a session on one server by it.
func newHTTPClient(cfg *Config) *http.Client {
	jar, _ := cookiejar.New(nil) // never fails without options
	poll := newHTTPTransport(cfg)
	poll.Proxy = cfg.Proxy
	poll.WriteBufferSize = pollWrite
	direct := newHTTPTransport(cfg)
	direct.Proxy = cfg.Proxy
	tunnel := newHTTPTransport(cfg)
	tunnel.DialContext = (&tunnelDialer{cfg: cfg, direct: direct.DialContext}).dial
	return &http.Client{Jar: jar, Transport: &router{poll: poll, direct: direct, tunnel: tunnel, proxy: cfg.Proxy}}
}

// pollWrite is how much of a POST goes out in one write. Python's engineio on
// aiohttp reads a body once, and takes what has arrived by then for all of it
// (engineio/asyncio_socket.py, handle_post_request; engineio 4.3.4): what comes
// in one piece has the best chance.
const pollWrite = 64 << 10

func newHTTPTransport(cfg *Config) *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	dialer := &net.Dialer{Timeout: cfg.ConnectTimeout, KeepAlive: 30 * time.Second}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		TLSClientConfig:     cfg.TLS.Clone(),
		TLSHandshakeTimeout: cfg.ConnectTimeout,
		Protocols:           &protocols,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     time.Minute,
	}
}

// router keeps the requests of polling and the handshakes of WebSockets apart,
// and sends a handshake without TLS through a CONNECT tunnel when an HTTP proxy
// is in the way. net/http would hand it to the proxy as an
// ordinary request, whose Upgrade header proxies drop (RFC 6455 section 4.1
// asks for CONNECT).
type router struct {
	poll, direct, tunnel *http.Transport

	proxy func(*http.Request) (*url.URL, error)
}

// RoundTrip is http.RoundTripper's.
func (r *router) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Upgrade") == "" {
		return r.poll.RoundTrip(req)
	}
	if req.URL.Scheme != "http" {
		return r.direct.RoundTrip(req)
	}
	proxy, err := r.proxy(req)
	if err != nil {
		return nil, fmt.Errorf("choose proxy: %w", err)
	}
	if proxy == nil || !strings.HasPrefix(proxy.Scheme, "http") {
		return r.direct.RoundTrip(req) // no proxy, or SOCKS, which net/http can
	}
	ctx := context.WithValue(req.Context(), proxyKey{}, proxy)
	return r.tunnel.RoundTrip(req.WithContext(ctx))
}

// CloseIdleConnections is called by http.Client's method of that name.
func (r *router) CloseIdleConnections() {
	r.poll.CloseIdleConnections()
	r.direct.CloseIdleConnections()
	r.tunnel.CloseIdleConnections()
}

type proxyKey struct{}

// tunnelDialer dials through the proxy that router left in the context.
type tunnelDialer struct {
	cfg    *Config
	direct func(ctx context.Context, network, addr string) (net.Conn, error)
}

func (d *tunnelDialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	proxy, ok := ctx.Value(proxyKey{}).(*url.URL)
	if !ok {
		return d.direct(ctx, network, addr)
	}
	conn, err := d.direct(ctx, network, proxyAddr(proxy))
	if err != nil {
		return nil, fmt.Errorf("dial proxy: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	tunnel, err := d.connect(ctx, conn, proxy, addr)
	if err != nil {
		_ = conn.Close() // the error that counts is err
		return nil, fmt.Errorf("tunnel through proxy %s: %w", proxy.Host, err)
	}
	return tunnel, nil
}

func proxyAddr(proxy *url.URL) string {
	if proxy.Port() != "" {
		return proxy.Host
	}
	port := "80"
	if proxy.Scheme == "https" {
		port = "443"
	}
	return net.JoinHostPort(proxy.Hostname(), port)
}

func (d *tunnelDialer) connect(ctx context.Context, conn net.Conn, proxy *url.URL, addr string) (net.Conn, error) {
	if proxy.Scheme == "https" {
		c := d.cfg.TLS.Clone()
		if c == nil {
			c = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		c.ServerName = proxy.Hostname()
		t := tls.Client(conn, c)
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = t
	}
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: addr}, Host: addr, Header: http.Header{}}
	if u := proxy.User; u != nil {
		password, _ := u.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)))
	}
	if err := req.Write(conn); err != nil {
		return nil, err
	}
	// The server speaks only after our next request: nothing of it can be
	// left in the buffer.
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, newHandshakeError(resp, nil, nil)
	}
	return conn, nil
}
