package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// maxEarly is how many events may come before CONNECT is answered.
const maxEarly = 1024

// session is one connection of a client. Its handle methods run on the reader's
// goroutine.
type session struct {
	client *Client
	engine *engine
	port   *port
	ctx    context.Context // of the engine: ends with the connection
	// reading ends when the connection ends or is being closed: then events
	// are no longer handed on, and reading never waits for a handler.
	reading  context.Context
	stop     context.CancelFunc
	handling context.Context // Run's, for handlers

	decoder decoder
	joined  chan struct{} // closed when CONNECT is answered
	in      bool          // joined is closed
	early   []*Event
}

// open opens a transport and joins the namespace. On error nothing is left.
func (c *Client) open(ctx context.Context) (*session, error) {
	header := http.Header{}
	if c.cfg.Header != nil {
		h, err := c.cfg.Header(ctx)
		if err != nil {
			return nil, fmt.Errorf("ask for headers: %w", err)
		}
		header = h.Clone()
	}
	payload, err := c.auth(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask for credentials: %w", err)
	}
	connect, err := encodeText(packetConnect, 0, c.cfg.Namespace, nil, payload)
	if err != nil {
		return nil, fmt.Errorf("credentials: %w", err)
	}
	e, err := dialEngine(ctx, &c.cfg, c.http, c.base, header)
	if err != nil {
		return nil, err
	}
	s := c.newSession(ctx, e)
	if err := s.join(ctx, connect); err != nil {
		e.fail(err)
		_ = s.close(0) // err is the reason
		return nil, err
	}
	return s, nil
}

func (c *Client) newSession(ctx context.Context, e *engine) *session {
	s := &session{client: c, engine: e, handling: ctx, joined: make(chan struct{})}
	started := make(chan struct{})
	s.ctx = e.start(func(f frame) error {
		<-started
		return s.handle(f)
	})
	s.reading, s.stop = context.WithCancel(s.ctx)
	s.port = newPort(c.cfg.Namespace, e.out, s.ctx.Done(), int(e.handshake.MaxPayload))
	close(started)
	return s
}

// join sends CONNECT and waits for the answer.
func (s *session) join(ctx context.Context, connect []byte) error {
	timer := time.NewTimer(s.client.cfg.ConnectTimeout)
	defer timer.Stop()
	if err := s.engine.out.send(ctx, []frame{{data: connect}}); err != nil {
		return err
	}
	select {
	case <-s.joined:
		return nil
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-timer.C:
		return ErrConnectTimeout
	case <-ctx.Done():
		select {
		case <-s.joined: // who was told so may have sent something, which is to go out
			return nil
		default:
			return context.Cause(ctx)
		}
	}
}

// close ends the connection and returns why it ended. OnDisconnect is due
// exactly if OnConnect was.
func (s *session) close(timeout time.Duration) error {
	s.stop()
	if s.ctx.Err() == nil {
		bye, _ := encodeText(packetDisconnect, 0, s.port.namespace, nil, nil) // no payload that could fail
		_, _ = s.engine.out.tryPush([]frame{{data: bye}}, len(bye))           // closing the transport says it too
	}
	s.client.live.CompareAndSwap(s, nil)
	s.engine.close(timeout)
	s.client.live.CompareAndSwap(s, nil) // the answer to CONNECT may have come in between
	reason := context.Cause(s.ctx)
	if s.in {
		s.client.calls.must(func() { s.client.onDisconnect(s.handling, reason) })
	}
	return reason
}

func (s *session) handle(f frame) error {
	p, err := s.decoder.add(f)
	if err != nil || p == nil {
		return err
	}
	if p.namespace != s.port.namespace {
		return nil // not ours; Node's client ignores it too
	}
	switch p.kind {
	case packetConnect:
		return s.handleConnect(p)
	case packetConnectError:
		return parseConnectError(p.data)
	case packetDisconnect:
		return ErrServerDisconnect
	case packetAck:
		s.port.resolve(p)
		return nil
	}
	e, err := s.port.event(p)
	if err != nil {
		return err
	}
	if s.in {
		s.deliver(e)
		return nil
	}
	if len(s.early) == maxEarly {
		return fmt.Errorf("%d events came before the answer to CONNECT", maxEarly)
	}
	s.early = append(s.early, e)
	return nil
}

// handleConnect takes the server's yes. Events that came before it are handed
// on after OnConnect.
func (s *session) handleConnect(p *packet) error {
	if s.in {
		return nil
	}
	var answer struct {
		SID string `json:"sid"`
		PID string `json:"pid"`
	}
	if p.data != nil {
		if err := json.Unmarshal(p.data, &answer); err != nil {
			return fmt.Errorf("answer to CONNECT: %w", err)
		}
	}
	if answer.SID == "" {
		return errors.New("answer to CONNECT has no sid: this is a Socket.IO 2 server, version 3 or later is needed")
	}
	c := s.client
	c.mu.Lock()
	recovered := answer.PID != "" && answer.PID == c.pid
	c.pid = answer.PID
	if !recovered {
		c.offset = ""
	}
	c.mu.Unlock()
	s.in = true
	close(s.joined)
	c.live.Store(s)
	c.calls.must(func() { c.onConnect(s.handling, Connection{ID: answer.SID, Recovered: recovered}) })
	for _, e := range s.early {
		s.deliver(e)
	}
	s.early = nil
	return nil
}

// deliver puts the event in line for its handler.
func (s *session) deliver(e *Event) {
	c := s.client
	h := c.handlers.find(e.Name)
	if h != nil {
		size := 0
		for _, a := range e.Args {
			size += len(a)
		}
		for _, a := range e.Attachments {
			size += len(a)
		}
		if c.calls.push(s.reading, func() { h(s.handling, e) }, size) != nil {
			return // closing: the event is as good as lost on the way
		}
	}
	s.remember(e)
}

// remember keeps the offset that a server with recovery adds to events without
// acknowledgement, as their last argument (socket.io-adapter,
// SessionAwareAdapter).
func (s *session) remember(e *Event) {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == "" || e.asked || len(e.Args) == 0 {
		return
	}
	var offset string
	if json.Unmarshal(e.Args[len(e.Args)-1], &offset) == nil {
		c.offset = offset
	}
}
