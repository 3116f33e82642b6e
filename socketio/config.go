package socketio

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is what a client is told. Only URL must be set; the values in
// brackets are the defaults.
type Config struct {
	// URL of the server: http, https, ws or wss, host, port, and possibly a
	// query, which is sent with every request. No path: see Path and Namespace.
	URL       string
	Path      string // of the endpoint ["/socket.io/"]
	Namespace string // to join ["/"]

	// Transports in the order in which they are tried [WebSocket, Polling].
	// A session over Polling moves to WebSocket if both are listed and the
	// server offers it.
	Transports []string

	// Auth gives the payload of CONNECT, a JSON object, or nil for none. It
	// is asked again for every connection. An error counts as a failed try.
	Auth func(context.Context) (any, error)

	// Header gives headers for every request of a connection. It is asked
	// again for every connection. No Origin header is sent unless it is here.
	Header func(context.Context) (http.Header, error)

	// TLS has the CAs and client certificates. Nil means the system's CAs.
	// Nothing here ever sets InsecureSkipVerify.
	TLS *tls.Config

	// Proxy chooses a proxy [http.ProxyFromEnvironment, which knows
	// HTTP_PROXY, HTTPS_PROXY and NO_PROXY]. Plain WebSockets go through an
	// HTTP proxy by CONNECT.
	Proxy func(*http.Request) (*url.URL, error)

	ConnectTimeout time.Duration // for opening all transports, and again for CONNECT's answer [20 s]
	AckTimeout     time.Duration // for EmitAck [30 s]
	WriteTimeout   time.Duration // for one frame to be taken by the network [20 s]
	CloseTimeout   time.Duration // for writing what is in line when Run ends [1 s]
	Backoff        Backoff

	// MaxMessage bounds one incoming frame, in bytes [64 MiB].
	MaxMessage int64
	// SendBuffer bounds what was accepted by Emit and not yet written, in
	// bytes, 128 of them counted for each event [4 MiB].
	SendBuffer int
	// HandlerBuffer bounds the events that wait for their handlers, counted in
	// the same way [64 MiB]. When it is full, reading stops, and with it the
	// heartbeat: handlers that block for longer than the server's pingTimeout
	// cost the connection.
	HandlerBuffer int
}

// Check tells what New would refuse.
func (c Config) Check() error {
	_, _, err := c.withDefaults()
	return err
}

// withDefaults checks a copy of c and fills it in.
func (c Config) withDefaults() (Config, *url.URL, error) {
	base, err := c.base()
	if err != nil {
		return c, nil, err
	}
	if c.Namespace == "" {
		c.Namespace = "/"
	}
	if c.Namespace[0] != '/' || strings.ContainsAny(c.Namespace, ",?") {
		return c, nil, fmt.Errorf("namespace %q: it starts with a slash and has no comma or question mark", c.Namespace)
	}
	if len(c.Transports) == 0 {
		c.Transports = []string{WebSocket, Polling}
	}
	for _, t := range c.Transports {
		if !slices.Contains([]string{WebSocket, Polling}, t) {
			return c, nil, fmt.Errorf("transport %q: there are %q and %q", t, WebSocket, Polling)
		}
	}
	if c.Proxy == nil {
		c.Proxy = http.ProxyFromEnvironment
	}
	orDefault(&c.ConnectTimeout, 20*time.Second)
	orDefault(&c.AckTimeout, 30*time.Second)
	orDefault(&c.WriteTimeout, 20*time.Second)
	orDefault(&c.CloseTimeout, time.Second)
	orDefault(&c.MaxMessage, 64<<20)
	orDefault(&c.SendBuffer, 4<<20)
	orDefault(&c.HandlerBuffer, 64<<20)
	c.Backoff = c.Backoff.withDefaults()
	return c, base, nil
}

// base is the URL that requests go to, still without transport and sid.
func (c Config) base() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) { // it repeats the URL, with what may be secret in it
			err = e.Err
		}
		return nil, fmt.Errorf("server URL: %w", err)
	}
	switch u.Scheme {
	case "ws":
		u.Scheme = "http"
	case "wss":
		u.Scheme = "https"
	case "http", "https":
	default:
		return nil, fmt.Errorf("server URL %q: it starts with http://, https://, ws:// or wss://, as https://host:8000", u.Redacted())
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("server URL %q: it names no host; one that does is https://host:8000", u.Redacted())
	}
	if _, err := strconv.ParseUint(u.Port(), 10, 16); u.Port() != "" && err != nil {
		return nil, fmt.Errorf("server URL %q: a port is a number up to 65535", u.Redacted())
	}
	if u.Path != "" && u.Path != "/" {
		return nil, errors.New("server URL: it has a path; the endpoint's is the setting path, a namespace the setting namespace")
	}
	u.Path = "/socket.io/"
	if c.Path != "" {
		u.Path = "/" + strings.Trim(c.Path, "/") + "/"
	}
	return u, nil
}

// orDefault sets what the caller left at zero.
func orDefault[T ~int | ~int64](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
