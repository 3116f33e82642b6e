package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// serverConn is the server's side of one Engine.IO session.
type serverConn struct {
	server  *Server
	id      string
	request *http.Request // the one that opened it
	out     *outbox
	calls   *dispatcher
	ctx     context.Context // ends with the session; its cause says why
	fail    context.CancelCauseFunc

	handling sync.Mutex // one frame is handled at a time
	decoder  decoder

	mu        sync.Mutex
	ws        *wsTransport // nil while the session polls
	upgrading bool
	probed    bool                    // the upgrade's WebSocket works: polls are cut short
	polling   context.CancelCauseFunc // ends the GET that waits, or nil
	posting   bool
	awaiting  bool        // a pong
	timer     *time.Timer // heartbeat
	patience  *time.Timer // for the first namespace
	ended     bool        // cleanUp has begun
	sockets   map[string]*Socket
}

// newConn makes a session, or returns nil if the server is closed.
func (s *Server) newConn(r *http.Request) *serverConn {
	ctx, fail := context.WithCancelCause(context.Background())
	c := &serverConn{
		server: s, id: newID(), request: r.Clone(ctx), ctx: ctx, fail: fail,
		out:     newOutbox(s.cfg.SendBuffer),
		calls:   newDispatcher(s.cfg.HandlerBuffer, s.cfg.OnPanic),
		sockets: map[string]*Socket{},
	}
	c.request.Body = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		fail(ErrClosed)
		return nil
	}
	s.sessions[c.id] = c
	c.mu.Lock() // for the timers, which may be quick
	defer c.mu.Unlock()
	c.timer = time.AfterFunc(s.cfg.PingInterval, c.beat)
	c.patience = time.AfterFunc(s.cfg.ConnectTimeout, func() { fail(ErrConnectTimeout) })
	s.wg.Go(c.calls.run)
	s.wg.Go(func() {
		<-ctx.Done()
		c.cleanUp()
	})
	return c
}

// cleanUp runs once, when the session has ended. Events that came before the
// end still go to their handlers, which can no longer send.
func (c *serverConn) cleanUp() {
	c.server.mu.Lock()
	delete(c.server.sessions, c.id)
	c.server.mu.Unlock()
	c.out.finish()
	c.mu.Lock()
	c.timer.Stop()
	c.patience.Stop()
	c.ended = true
	ws, sockets := c.ws, slices.Collect(maps.Values(c.sockets))
	c.mu.Unlock()
	if ws != nil {
		ws.abort()
	}
	for _, s := range sockets {
		s.hangUp()
		c.calls.must(func() { s.leave(context.Cause(c.ctx)) })
	}
	c.calls.finish()
}

// open is the open packet for a client that came over transport.
func (c *serverConn) open(transport string) frame {
	cfg := c.server.cfg
	h := handshake{
		SID: c.id, Upgrades: []string{},
		PingInterval: cfg.PingInterval.Milliseconds(),
		PingTimeout:  cfg.PingTimeout.Milliseconds(),
		MaxPayload:   cfg.MaxPayload,
	}
	if transport == Polling && slices.Contains(cfg.Transports, WebSocket) {
		h.Upgrades = append(h.Upgrades, WebSocket)
	}
	text, _ := json.Marshal(h) // strings and numbers always can be
	return textFrame(frameOpen, string(text))
}

// beat sends a ping, or ends the session if the last one was not answered.
func (c *serverConn) beat() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaiting {
		c.fail(ErrHeartbeat)
		return
	}
	if silent := c.server.cfg.Faults.Silent; silent != nil && silent(c.id) {
		c.timer.Reset(c.server.cfg.PingInterval)
		return
	}
	c.awaiting = true
	c.timer.Reset(c.server.cfg.PingTimeout)
	c.out.hurry(textFrame(framePing, ""))
}

func (c *serverConn) pong() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.awaiting {
		c.awaiting = false
		c.timer.Reset(c.server.cfg.PingInterval)
	}
}

// handle takes a frame from the client. An error ends the session.
func (c *serverConn) handle(f frame) error {
	c.handling.Lock()
	defer c.handling.Unlock()
	switch f.kind() {
	case framePong:
		c.pong()
		return nil
	case frameClose:
		return errTransportClosed
	case frameNoop:
		return nil
	case frameMessage:
	default:
		return fmt.Errorf("packet type %q is not for a server", f.kind())
	}
	p, err := c.decoder.add(f)
	if err != nil || p == nil {
		return err
	}
	return c.handlePacket(p)
}

// handlePacket resolves acks here, for a handler may be waiting for one, and
// puts everything else in line behind the handlers.
func (c *serverConn) handlePacket(p *packet) error {
	weight := len(p.data)
	for _, a := range p.attachments {
		weight += len(a)
	}
	switch p.kind {
	case packetAck:
		if s := c.socket(p.namespace); s != nil {
			s.port.resolve(p)
		}
		return nil
	case packetConnect:
		return c.calls.push(c.ctx, func() { c.join(p) }, weight)
	case packetDisconnect:
		return c.calls.push(c.ctx, func() { c.part(p.namespace) }, weight)
	case packetEvent:
		e, err := parseEvent(p)
		if err != nil {
			return err
		}
		if reserved[e.Name] {
			return fmt.Errorf("event name %q is reserved", e.Name)
		}
		return c.calls.push(c.ctx, func() { c.deliver(p.namespace, e) }, weight)
	}
	return fmt.Errorf("packet type %q is not for a server", p.kind)
}

func (c *serverConn) socket(namespace string) *Socket {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sockets[namespace]
}

func (c *serverConn) deliver(namespace string, e *Event) {
	s := c.socket(namespace)
	if s == nil {
		c.fail(errors.New("an event came before CONNECT"))
		return
	}
	if s.expelled.Load() {
		return // it was sent before the client heard that it is out
	}
	e.port = s.port
	if h := s.namespace.handlers.find(e.Name); h != nil {
		h(s, e)
	}
}

func (c *serverConn) part(namespace string) {
	s := c.socket(namespace)
	if s == nil {
		return
	}
	s.leave(errTransportClosed)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sockets, namespace)
}

// join answers CONNECT.
func (c *serverConn) join(p *packet) {
	n := c.server.namespace(p.namespace)
	if mute := c.server.cfg.Faults.Mute; mute != nil && mute(p.namespace) {
		return
	}
	if n == nil {
		c.refuse(p.namespace, &ConnectError{Message: "Invalid namespace"})
		return
	}
	if s := c.socket(p.namespace); s != nil && !s.expelled.Load() {
		c.fail(errors.New("CONNECT came twice"))
		return
	}
	s := newSocket(c, n, p.data)
	if auth := n.authFunc(); auth != nil {
		if err := auth(s); err != nil {
			c.refuse(p.namespace, err)
			return
		}
	}
	if !s.enter() {
		return
	}
	c.sendText(packetConnect, p.namespace, map[string]string{"sid": s.id})
	s.namespace.connected(s)
}

// refuse sends CONNECT_ERROR in Node's shape.
func (c *serverConn) refuse(namespace string, err error) {
	answer := map[string]any{"message": err.Error()}
	var ce *ConnectError
	if errors.As(err, &ce) {
		answer["message"] = ce.Message
		if ce.Data != nil {
			answer["data"] = ce.Data
		}
	}
	c.sendText(packetConnectError, namespace, answer)
}

// sendText sends a packet that is not an event.
func (c *serverConn) sendText(kind byte, namespace string, data any) {
	text, err := encodeText(kind, 0, namespace, nil, data)
	if err == nil {
		err = c.out.send(c.ctx, []frame{{data: text}})
	}
	if err != nil {
		c.fail(err)
	}
}

// end lets what is in line be written, and then ends the session.
func (c *serverConn) end() {
	c.out.finish()
	time.AfterFunc(c.server.cfg.WriteTimeout, func() { c.fail(ErrClosed) })
}
