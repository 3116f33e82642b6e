package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
)

// errSlow ends the session of a client that does not read what is broadcast.
var errSlow = errors.New("socket.io: send buffer full at a broadcast")

// SocketHandler is called with an event from a client. The handlers of one
// session run one after the other, in the order of the wire.
type SocketHandler func(s *Socket, e *Event)

// Namespace is a part of a server that clients join. Set its functions before
// clients come.
type Namespace struct {
	name     string
	handlers callbacks[SocketHandler]

	mu           sync.Mutex
	auth         func(*Socket) error
	onConnect    func(*Socket)
	onDisconnect func(*Socket, error)
	sockets      map[string]*Socket
	rooms        map[string]map[*Socket]struct{}
}

// Auth sets what decides on a client that wants to join, by its
// [Socket.Auth] and [Socket.Request]. An error refuses it with CONNECT_ERROR; a
// [*ConnectError] can carry data.
func (n *Namespace) Auth(f func(*Socket) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.auth = f
}

func (n *Namespace) authFunc() func(*Socket) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.auth
}

// OnConnect sets what is called with a client that has joined, before the
// handler of any of its events.
func (n *Namespace) OnConnect(f func(*Socket)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onConnect = f
}

// OnDisconnect sets what is called once for every client that OnConnect was
// called with, when it has left, after the handlers of its events.
func (n *Namespace) OnDisconnect(f func(s *Socket, reason error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onDisconnect = f
}

// On sets the handler of an event.
func (n *Namespace) On(event string, h SocketHandler) { n.handlers.set(event, h) }

// OnAny sets the handler of all events that have none of their own.
func (n *Namespace) OnAny(h SocketHandler) { n.handlers.setAny(h) }

func (n *Namespace) connected(s *Socket) {
	n.mu.Lock()
	f := n.onConnect
	n.mu.Unlock()
	if f != nil {
		f(s)
	}
}

// Sockets are the clients that are in the namespace, or in a room of it if
// that is not empty.
func (n *Namespace) Sockets(room string) []*Socket {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []*Socket
	if room != "" {
		for s := range n.rooms[room] {
			all = append(all, s)
		}
		return all
	}
	for _, s := range n.sockets {
		all = append(all, s)
	}
	return all
}

// Broadcast sends an event to all [Namespace.Sockets] of the room but except,
// which may be nil. It never waits: a client whose send buffer is full is
// disconnected.
func (n *Namespace) Broadcast(room string, except *Socket, event string, args ...any) error {
	p := newPort(n.name, nil, nil, math.MaxInt)
	frames, err := p.encodeEvent(nil, event, args)
	if err != nil {
		return err
	}
	for _, s := range n.Sockets(room) {
		if s == except || s.port.over() {
			continue
		}
		if ok, _ := s.conn.out.tryPush(frames, size(frames)); !ok {
			s.conn.fail(errSlow)
		}
	}
	return nil
}

// Socket is one client in one namespace.
type Socket struct {
	conn      *serverConn
	namespace *Namespace
	id        string
	auth      json.RawMessage
	port      *port
	done      chan struct{}
	hung      sync.Once
	expelled  atomic.Bool // by Disconnect: events still on the way do not count
	left      onceFlag
	rooms     map[string]struct{} // guarded by namespace.mu
}

func newSocket(c *serverConn, n *Namespace, auth json.RawMessage) *Socket {
	s := &Socket{conn: c, namespace: n, id: newID(), auth: auth, done: make(chan struct{}), rooms: map[string]struct{}{}}
	s.port = newPort(n.name, c.out, s.done, math.MaxInt)
	return s
}

// enter makes the socket one of its namespace, unless the session is over.
func (s *Socket) enter() bool {
	c := s.conn
	c.mu.Lock()
	alive := !c.ended
	if alive {
		c.sockets[s.namespace.name] = s
		c.patience.Stop()
	}
	c.mu.Unlock()
	if alive {
		s.namespace.add(s)
	}
	return alive
}

// add does nothing if the socket has left meanwhile.
func (n *Namespace) add(s *Socket) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !s.left.used.Load() {
		n.sockets[s.id] = s
	}
}

// leave takes the socket out of everything, once. It runs in line with the
// handlers.
func (s *Socket) leave(reason error) {
	if !s.left.first() {
		return
	}
	s.hangUp()
	n := s.namespace
	n.mu.Lock()
	delete(n.sockets, s.id)
	for room := range s.rooms {
		n.drop(room, s)
	}
	f := n.onDisconnect
	n.mu.Unlock()
	if f != nil {
		f(s, reason)
	}
}

// hangUp ends all sending and waiting, once.
func (s *Socket) hangUp() { s.hung.Do(func() { close(s.done) }) }

// drop is called with mu held.
func (n *Namespace) drop(room string, s *Socket) {
	delete(n.rooms[room], s)
	if len(n.rooms[room]) == 0 {
		delete(n.rooms, room)
	}
}

// ID is the client's name in the namespace.
func (s *Socket) ID() string { return s.id }

// Auth is the payload of the client's CONNECT, or nil.
func (s *Socket) Auth() json.RawMessage { return s.auth }

// Request is the HTTP request that opened the session, without its body.
func (s *Socket) Request() *http.Request { return s.conn.request }

// Transport is WebSocket or Polling.
func (s *Socket) Transport() string {
	if s.conn.polls() {
		return Polling
	}
	return WebSocket
}

// Join puts the client into a room. It leaves all rooms when it leaves.
func (s *Socket) Join(room string) {
	n := s.namespace
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets[s.id] != s {
		return
	}
	s.rooms[room] = struct{}{}
	if n.rooms[room] == nil {
		n.rooms[room] = map[*Socket]struct{}{}
	}
	n.rooms[room][s] = struct{}{}
}

// Leave takes the client out of a room.
func (s *Socket) Leave(room string) {
	n := s.namespace
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(s.rooms, room)
	n.drop(room, s)
}

// Emit is [Client.Emit] in the other direction.
func (s *Socket) Emit(ctx context.Context, event string, args ...any) error {
	return s.port.emit(ctx, event, args)
}

// EmitAck is [Client.EmitAck] in the other direction.
func (s *Socket) EmitAck(ctx context.Context, event string, args ...any) (Message, error) {
	return s.port.emitAck(ctx, s.conn.server.cfg.AckTimeout, event, args)
}

// Disconnect takes the client out of the namespace and tells it; with session
// it also ends the session, once what is in line is written.
func (s *Socket) Disconnect(session bool) {
	s.conn.sendText(packetDisconnect, s.namespace.name, nil)
	s.expelled.Store(true)
	s.hangUp()
	s.conn.calls.must(func() { s.leave(ErrServerDisconnect) }) // if it is too late for that, cleanUp does it
	if session {
		s.conn.end()
	}
}
