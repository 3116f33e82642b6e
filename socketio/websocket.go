package socketio

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"time"

	"github.com/coder/websocket"
)

// wsTransport is a WebSocket, on either side.
//
// coder/websocket's Close may wait 5 s twice, its CloseNow waits for a Close
// that is under way, and a deadline by context costs an allocation per
// message. So we hold the connection below it: closing that ends everything at
// once, and it has write deadlines.
type wsTransport struct {
	conn         *websocket.Conn
	raw          net.Conn
	held         *heldConn // between them, or nil
	writeTimeout time.Duration
	touch        func() // told of every piece that arrives
	scratch      []byte
	last         int // size of the last message if it did not fit into scratch, else 0
}

const (
	keepScratch = 64 << 10 // the largest read buffer that a connection keeps
	maxAhead    = 1 << 20  // most that is allocated ahead of what arrives
)

func newWSTransport(conn *websocket.Conn, raw net.Conn, maxMessage int64, writeTimeout time.Duration) *wsTransport {
	conn.SetReadLimit(maxMessage)
	return &wsTransport{conn: conn, raw: raw, writeTimeout: writeTimeout, touch: func() {}}
}

// dialWebSocket opens a WebSocket; ctx counts only until it is open.
func dialWebSocket(ctx context.Context, client *http.Client, url string, header http.Header, cfg *Config) (*wsTransport, error) {
	var raw net.Conn
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) { raw = info.Conn },
	})
	between := &holding{RoundTripper: client.Transport}
	conn, resp, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPClient: &http.Client{Jar: client.Jar, Transport: between}, HTTPHeader: header,
	})
	if err != nil {
		if resp == nil || resp.StatusCode == http.StatusSwitchingProtocols {
			return nil, err
		}
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // only for the message
		return nil, newHandshakeError(resp, body, nil)
	}
	t := newWSTransport(conn, bareConn(raw), cfg.MaxMessage, cfg.WriteTimeout)
	t.held = between.conn
	return t, nil
}

// bareConn looks below TLS: closing a TLS connection first tries for 5 s to
// write an alert.
func bareConn(c net.Conn) net.Conn {
	for {
		t, ok := c.(*tls.Conn)
		if !ok {
			return c
		}
		c = t.NetConn()
	}
}

func (t *wsTransport) name() string { return WebSocket }

func (t *wsTransport) read(context.Context) (frame, error) {
	typ, r, err := t.conn.Reader(context.Background()) // abort ends it
	if err != nil {
		return frame{}, closeError(err)
	}
	buf := t.scratch[:0]
	if t.last > 0 { // what is large is likely to be followed by more of its size
		buf = make([]byte, 0, min(t.last+1, maxAhead)) // +1: the end is seen by a read
	}
	for {
		if len(buf) == cap(buf) {
			buf = t.grow(buf)
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		t.touch()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return frame{}, closeError(err)
		}
	}
	f := frame{data: t.own(buf), binary: typ == websocket.MessageBinary}
	return f, f.check()
}

// grow makes room.
func (t *wsTransport) grow(buf []byte) []byte {
	return append(make([]byte, 0, max(2*cap(buf), 512)), buf...)
}

// own returns a copy and keeps the buffer, or gives a large buffer away.
func (t *wsTransport) own(buf []byte) []byte {
	if len(buf) > keepScratch {
		t.last = len(buf)
		return buf
	}
	if t.last = 0; cap(buf) <= keepScratch {
		t.scratch = buf
	}
	return append(make([]byte, 0, len(buf)), buf...)
}

// closeError makes a polite close look like one.
func closeError(err error) error {
	switch websocket.CloseStatus(err) {
	case websocket.StatusNormalClosure, websocket.StatusGoingAway, websocket.StatusNoStatusRcvd:
		return errTransportClosed
	}
	return err
}

func (t *wsTransport) write(_ context.Context, frames []frame) error {
	if t.held != nil {
		t.held.hold()
	}
	err := t.writeFrames(frames)
	if t.held != nil {
		err = errors.Join(err, t.held.release())
	}
	if err != nil {
		return err
	}
	// The library answers WebSocket pings by itself, at any time.
	return t.raw.SetWriteDeadline(time.Time{})
}

func (t *wsTransport) writeFrames(frames []frame) error {
	for _, f := range frames {
		typ := websocket.MessageText
		if f.binary {
			typ = websocket.MessageBinary
		}
		if err := t.raw.SetWriteDeadline(time.Now().Add(t.writeTimeout)); err != nil {
			return err
		}
		if err := t.conn.Write(context.Background(), typ, f.data); err != nil {
			return err
		}
	}
	return nil
}

func (t *wsTransport) close(context.Context) {
	_ = t.conn.Close(websocket.StatusNormalClosure, "") // the other side may be gone already
}

func (t *wsTransport) abort() {
	_ = t.raw.Close()
	_ = t.conn.CloseNow()
}
