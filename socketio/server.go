package socketio

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"
)

// ServerConfig is what a server is told; the values in brackets are the
// defaults, which are Node's.
type ServerConfig struct {
	PingInterval   time.Duration // between a pong and the next ping [25 s]
	PingTimeout    time.Duration // for the pong [20 s]
	UpgradeTimeout time.Duration // for each step of an upgrade [10 s]
	ConnectTimeout time.Duration // for the first namespace to be joined [45 s]
	WriteTimeout   time.Duration // for one frame to be taken by the network [20 s]
	AckTimeout     time.Duration // for EmitAck [30 s]
	MaxPayload     int64         // bytes of one WebSocket frame or POST [1,000,000]
	SendBuffer     int           // as in Config, for each connection [4 MiB]
	HandlerBuffer  int           // as in Config, for each connection [4 MiB]
	Transports     []string      // that are offered [both]

	// Origins are host patterns that pages from elsewhere may connect from; see
	// OriginPatterns of coder/websocket. A request without an Origin header,
	// which is how programs come, is always let in.
	Origins []string

	// OnPanic is told of panics in handlers. Nil drops them.
	OnPanic func(*HandlerPanic)

	Faults Faults
}

// Faults make a server misbehave, for tests of clients. The zero value has none.
type Faults struct {
	// Request sees every HTTP request first and answers it if it returns true.
	Request func(http.ResponseWriter, *http.Request) bool
	// Silent sessions are sent no ping.
	Silent func(session string) bool
	// Mute namespaces never answer CONNECT.
	Mute func(namespace string) bool
}

// Server is the server's side of the protocol, an [http.Handler] for the
// endpoint's path (usually /socket.io/). It keeps its sessions in memory, and
// has no connection state recovery.
type Server struct {
	cfg ServerConfig
	wg  sync.WaitGroup

	mu         sync.Mutex
	closed     bool
	sessions   map[string]*serverConn
	namespaces map[string]*Namespace
}

// NewServer makes a server that has the namespace "/". Close ends it.
func NewServer(cfg ServerConfig) *Server {
	orDefault(&cfg.PingInterval, 25*time.Second)
	orDefault(&cfg.PingTimeout, 20*time.Second)
	orDefault(&cfg.UpgradeTimeout, 10*time.Second)
	orDefault(&cfg.ConnectTimeout, 45*time.Second)
	orDefault(&cfg.WriteTimeout, 20*time.Second)
	orDefault(&cfg.AckTimeout, 30*time.Second)
	orDefault(&cfg.MaxPayload, defaultMaxPayload)
	orDefault(&cfg.SendBuffer, 4<<20)
	orDefault(&cfg.HandlerBuffer, 4<<20)
	if len(cfg.Transports) == 0 {
		cfg.Transports = []string{WebSocket, Polling}
	}
	if cfg.OnPanic == nil {
		cfg.OnPanic = func(*HandlerPanic) {}
	}
	s := &Server{cfg: cfg, sessions: map[string]*serverConn{}, namespaces: map[string]*Namespace{}}
	s.Of("/")
	return s
}

// Of is the namespace of that name, which starts with a slash. Clients can
// join it from the first call on.
func (s *Server) Of(name string) *Namespace {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.namespaces[name]
	if n == nil {
		n = &Namespace{name: name, sockets: map[string]*Socket{}, rooms: map[string]map[*Socket]struct{}{}}
		s.namespaces[name] = n
	}
	return n
}

func (s *Server) namespace(name string) *Namespace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namespaces[name]
}

// Close ends every session, refuses new ones, and returns when all requests and
// handlers have returned.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.end(ErrClosed)
	s.wg.Wait()
	return nil
}

// Drop cuts every connection without a word, as a crash would. New ones are
// let in.
func (s *Server) Drop() { s.end(errors.New("socket.io: dropped")) }

func (s *Server) end(reason error) {
	s.mu.Lock()
	all := make([]*serverConn, 0, len(s.sessions))
	for _, c := range s.sessions {
		all = append(all, c)
	}
	s.mu.Unlock()
	for _, c := range all {
		c.fail(reason)
	}
}

// Sessions is how many sessions are open.
func (s *Server) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Errors of the handshake, with Node's numbers (engine.io, "Server.errors").
const (
	codeUnknownTransport = iota
	codeUnknownSession
	codeBadMethod
	codeBadRequest
	codeForbidden
	codeUnsupportedVersion
)

var codeText = [...]string{
	"Transport unknown", "Session ID unknown", "Bad handshake method",
	"Bad request", "Forbidden", "Unsupported protocol version",
}

func refuse(w http.ResponseWriter, code int) {
	status := http.StatusBadRequest
	if code == codeForbidden {
		status = http.StatusForbidden
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": code, "message": codeText[code]}) // the client may be gone
}

// ServeHTTP is [http.Handler]'s.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.cfg.Faults.Request != nil && s.cfg.Faults.Request(w, r) {
		return
	}
	if !s.begin() {
		refuse(w, codeForbidden)
		return
	}
	defer s.wg.Done()
	q := r.URL.Query()
	transport, sid := q.Get("transport"), q.Get("sid")
	switch {
	case !slices.Contains(s.cfg.Transports, transport):
		refuse(w, codeUnknownTransport)
	case q.Get("EIO") != "4":
		refuse(w, codeUnsupportedVersion)
	case sid == "" && r.Method != http.MethodGet:
		refuse(w, codeBadMethod)
	case sid == "" && transport == WebSocket:
		s.openWebSocket(w, r)
	case sid == "":
		s.openPolling(w, r)
	default:
		s.serveSession(w, r, transport, sid)
	}
}

// begin counts a request, so that Close can wait for it.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.wg.Add(1)
	return true
}

func (s *Server) serveSession(w http.ResponseWriter, r *http.Request, transport, sid string) {
	s.mu.Lock()
	c := s.sessions[sid]
	s.mu.Unlock()
	switch {
	case c == nil || c.ctx.Err() != nil: // it has ended, and is about to be forgotten
		refuse(w, codeUnknownSession)
	case transport == WebSocket:
		c.upgrade(w, r)
	case !c.polls():
		refuse(w, codeBadRequest)
	case r.Method == http.MethodGet:
		c.poll(w, r)
	case r.Method == http.MethodPost:
		c.post(w, r)
	default:
		refuse(w, codeBadRequest)
	}
}

// newID is a session's secret name: 120 random bits.
func newID() string {
	var b [15]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return base64.RawURLEncoding.EncodeToString(b[:])
}
