package socketio

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

var (
	errOverlap   = errors.New("two polling requests at once")
	errUpgrading = errors.New("an upgrade is under way")
	errCancelled = errors.New("polling request cancelled")
)

func (s *Server) openPolling(w http.ResponseWriter, r *http.Request) {
	c := s.newConn(r)
	if c == nil {
		refuse(w, codeForbidden)
		return
	}
	reply(w, c.open(Polling).data)
}

func reply(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(body) // a client that is gone is noticed by its silence
}

// polls tells whether the session may still be used over polling.
func (c *serverConn) polls() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ws == nil && c.ctx.Err() == nil
}

// poll answers a GET as soon as there is something to send.
func (c *serverConn) poll(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	c.mu.Lock()
	overlap, probed := c.polling != nil, c.probed
	if !overlap {
		c.polling = cancel
	}
	c.mu.Unlock()
	if overlap {
		c.fail(errOverlap)
		refuse(w, codeBadRequest)
		return
	}
	defer c.polled()
	if probed {
		cancel(errUpgrading)
	}
	stop := context.AfterFunc(c.ctx, func() { cancel(context.Cause(c.ctx)) })
	defer stop()
	const maxBatch = 1 << 20
	batch, err := c.out.pop(ctx, 1024, maxBatch)
	switch {
	case len(batch) > 0:
		var body []byte
		for _, f := range batch {
			body = f.appendPayload(body)
		}
		reply(w, body)
	case r.Context().Err() != nil:
		c.fail(errCancelled)
	case errors.Is(err, errUpgrading) || errors.Is(context.Cause(c.ctx), errTransportClosed):
		reply(w, []byte{frameNoop})
	default:
		reply(w, []byte{frameClose})
		c.fail(ErrClosed)
	}
}

func (c *serverConn) polled() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.polling = nil
}

// post takes what a client sends over polling.
func (c *serverConn) post(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	overlap := c.posting
	c.posting = true
	c.mu.Unlock()
	if overlap {
		c.fail(errOverlap)
		refuse(w, codeBadRequest)
		return
	}
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.posting = false
	}()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, c.server.cfg.MaxPayload))
	if err != nil {
		c.fail(err)
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	for p := range bytes.SplitSeq(body, []byte{separator}) {
		f, err := parsePayloadFrame(p)
		if err == nil {
			err = c.handle(f)
		}
		if errors.Is(err, errTransportClosed) {
			c.fail(err)
			break
		}
		if err != nil {
			c.fail(err)
			refuse(w, codeBadRequest)
			return
		}
	}
	reply(w, []byte("ok"))
}

// rawCatcher remembers the connection that a WebSocket takes over.
type rawCatcher struct {
	http.ResponseWriter
	raw net.Conn
}

// Hijack is http.Hijacker's.
func (w *rawCatcher) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	w.raw = conn
	return conn, rw, err
}

// accept takes a WebSocket; it has answered if it returns nil.
func (s *Server) accept(w http.ResponseWriter, r *http.Request) *wsTransport {
	catcher := &rawCatcher{ResponseWriter: w}
	conn, err := websocket.Accept(catcher, r, &websocket.AcceptOptions{OriginPatterns: s.cfg.Origins})
	if err != nil {
		return nil
	}
	return newWSTransport(conn, bareConn(catcher.raw), s.cfg.MaxPayload, s.cfg.WriteTimeout)
}

func (s *Server) openWebSocket(w http.ResponseWriter, r *http.Request) {
	ws := s.accept(w, r)
	if ws == nil {
		return
	}
	c := s.newConn(r)
	if c == nil {
		ws.abort()
		return
	}
	if err := ws.write(c.ctx, []frame{c.open(WebSocket)}); err != nil {
		c.fail(err)
	}
	c.serve(ws)
}

// serve makes ws the session's transport until the session ends.
func (c *serverConn) serve(ws *wsTransport) {
	c.mu.Lock()
	c.ws = ws
	c.mu.Unlock()
	if c.ctx.Err() != nil {
		ws.abort() // cleanUp may have looked before
	}
	var writer sync.WaitGroup
	writer.Go(func() { c.fail(c.writeLoop(ws)) })
	c.fail(c.readLoop(ws))
	ws.abort()
	writer.Wait()
}

func (c *serverConn) readLoop(ws *wsTransport) error {
	for {
		f, err := ws.read(c.ctx)
		if err != nil {
			return err
		}
		if err := c.handle(f); err != nil {
			return err
		}
	}
}

func (c *serverConn) writeLoop(ws *wsTransport) error {
	const maxBatch = 64 << 10
	for {
		batch, err := c.out.pop(c.ctx, 64, maxBatch)
		if err != nil {
			return err
		}
		if len(batch) == 0 {
			ws.close(c.ctx)
			return ErrClosed
		}
		if err := ws.write(c.ctx, batch); err != nil {
			return err
		}
	}
}

// upgrade moves a session that polls to the WebSocket that r asks for
// (engine.io-protocol v4, "Upgrade").
func (c *serverConn) upgrade(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	possible := c.ws == nil && !c.upgrading && c.ctx.Err() == nil
	if possible {
		c.upgrading = true
	}
	c.mu.Unlock()
	if !possible {
		refuse(w, codeBadRequest)
		return
	}
	ws := c.server.accept(w, r)
	if ws != nil && c.probe(ws) {
		c.serve(ws)
		return
	}
	c.mu.Lock()
	c.upgrading, c.probed = false, false
	c.mu.Unlock()
	if ws != nil {
		ws.abort()
	}
}

// probe goes through the upgrade's steps up to the client's upgrade packet.
func (c *serverConn) probe(ws *wsTransport) bool {
	timer := time.AfterFunc(c.server.cfg.UpgradeTimeout, ws.abort)
	defer timer.Stop()
	stop := context.AfterFunc(c.ctx, ws.abort)
	defer stop()
	f, err := ws.read(c.ctx)
	if err != nil || string(f.data) != "2probe" {
		return false
	}
	if ws.write(c.ctx, []frame{textFrame(framePong, "probe")}) != nil {
		return false
	}
	c.mu.Lock()
	c.probed = true
	if c.polling != nil {
		c.polling(errUpgrading) // so that the client can stop polling
	}
	c.mu.Unlock()
	f, err = ws.read(c.ctx)
	return err == nil && f.kind() == frameUpgrade
}
