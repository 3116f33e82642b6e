package agent

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/sirupsen/logrus"

	"deployx/socketio"
)

// Options are what an agent is told. URL, State and Open are needed; the values
// in brackets are the defaults.
type Options struct {
	URL        string
	Path       string   // of the endpoint [/socket.io/]
	Namespace  string   // [/]
	Transports []string // in the order in which they are tried [websocket, polling]
	TokenFile  string   // holds the token; read afresh for every connection
	Header     http.Header
	TLS        *tls.Config
	// AllowPlaintext lets the connection be without TLS though the backend is
	// not on this host.
	AllowPlaintext bool

	AgentID string // [agent_ and 8 digits of the machine id's hash]
	Name    string // device_name [the host's name]
	Version string

	State string // the state directory; the agent's files are in State/agent
	Open  Opener
	Clean Cleaner  // of trees in State that no request has opened [they are left alone]
	Trees []string // the first is meant by requests that name none
	// AllowTrees, with Trees, are all that requests may name. None allows any.
	AllowTrees []string

	Shells []string // that are installed
	Shell  string   // of the sessions [bash]
	Env    []string // "K=V" for every command, but for what its request sets
	User   string   // that commands run as; the interactive shell too ["" is ours]

	// SignatureKeys is PEM with public keys: only requests signed by one are
	// carried out.
	SignatureKeys []byte

	Retention       time.Duration // age of the snapshots that clean-up lets go [24 h]; negative keeps them
	CleanupInterval time.Duration // [1 h]
	Grace           time.Duration // for the running commands when the agent is stopped [30 s]
	FlushTimeout    time.Duration // for the results to be delivered then [10 s]

	Backoff socketio.Backoff // between tries to connect [1 s to 30 s; 15 s after a refusal]

	Log *logrus.Logger // [one that drops everything]

	tuning
}

// tuning are the times that tests shorten.
type tuning struct {
	Heartbeat  time.Duration // [10 s]
	Patience   time.Duration // for an ack, before other things go on [1 s]
	AckTimeout time.Duration // for an ack, before a try has failed [20 s]
	// CleanPatience is for the clean-up of one tree, before the next has its turn
	// beside it: where a command runs it waits until that ends [10 s].
	CleanPatience time.Duration
	SpoolBytes    int64 // of output a command [16 MiB]

	journal limits
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&o.Retention, 24*time.Hour)
	set(&o.CleanupInterval, time.Hour)
	set(&o.Grace, 30*time.Second)
	set(&o.FlushTimeout, 10*time.Second)
	set(&o.Heartbeat, 10*time.Second)
	set(&o.Patience, time.Second)
	set(&o.AckTimeout, 20*time.Second)
	set(&o.CleanPatience, 10*time.Second)
	if o.SpoolBytes == 0 {
		o.SpoolBytes = spoolBytes
	}
	if o.Shell == "" {
		o.Shell = "bash"
	}
	if o.Log == nil {
		o.Log = logrus.New()
		o.Log.SetLevel(logrus.PanicLevel)
	}
	return o
}

// Check refuses what is not safe. New does it too.
func (o Options) Check() error {
	if err := o.CheckBackend(); err != nil {
		return err
	}
	if o.TokenFile != "" {
		_, err := readToken(o.TokenFile)
		return err
	}
	return nil
}

// CheckBackend looks at what names the backend: no other try mends that.
func (o Options) CheckBackend() error {
	if o.URL == "" {
		return errors.New("no backend: give its URL with --url https://host:port")
	}
	c := socketio.Config{URL: o.URL, Path: o.Path, Namespace: o.Namespace, Transports: o.Transports}
	if err := c.Check(); err != nil {
		return err
	}
	u, err := url.Parse(o.URL)
	if err != nil {
		return err
	}
	if u.User != nil {
		return errors.New("backend URL: it holds a password, which logs would show; use --token-file or --header-file")
	}
	plain := u.Scheme == "http" || u.Scheme == "ws"
	if plain && !o.AllowPlaintext && !loopback(u.Hostname()) {
		return fmt.Errorf("%s is not encrypted, and whoever can change what passes runs commands here: use https, or --allow-plaintext if the network is trusted", bare(o.URL))
	}
	return nil
}

// loopback holds for names and addresses of this host itself. localhost is that
// by RFC 6761 section 6.3.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// bare is a URL without what may be secret: user and query.
func bare(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host
}
