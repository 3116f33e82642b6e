package socketio

import (
	"io"
	"net/http"
	"sync"
)

// heldConn collects what is written while it is held, and writes it in large
// pieces. coder/websocket writes 4 KiB at a time, and one message at a time:
// half the time of a stream of output went into system calls.
type heldConn struct {
	io.ReadWriteCloser

	mu    sync.Mutex
	held  bool
	buf   []byte
	taken int   // since hold
	err   error // of an earlier write; nothing can be written after it
}

const (
	heldBytes = 128 << 10 // written together
	heldKept  = 4 << 10   // largest buffer that is kept over a hold with no more than that
)

// Write is passed on at once unless the connection is held: the library answers
// pings by itself.
func (c *heldConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if !c.held {
		return c.ReadWriteCloser.Write(p)
	}
	c.buf = append(c.buf, p...)
	c.taken += len(p)
	if len(c.buf) >= heldBytes {
		c.flush()
	}
	return len(p), c.err
}

// flush writes what is collected. The caller holds mu.
func (c *heldConn) flush() {
	if c.err == nil && len(c.buf) > 0 {
		_, c.err = c.ReadWriteCloser.Write(c.buf)
	}
	c.buf = c.buf[:0]
}

// hold starts collecting.
func (c *heldConn) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held, c.taken = true, 0
}

// release writes what was collected.
func (c *heldConn) release() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	c.flush()
	if c.taken <= heldKept && cap(c.buf) > heldKept {
		c.buf = nil // the stream is over
	}
	return c.err
}

// holding is a RoundTripper that puts a heldConn between the library and the
// connection of a WebSocket.
type holding struct {
	http.RoundTripper
	conn *heldConn
}

func (h *holding) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := h.RoundTripper.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		return resp, err
	}
	if rwc, ok := resp.Body.(io.ReadWriteCloser); ok {
		h.conn = &heldConn{ReadWriteCloser: rwc}
		resp.Body = h.conn
	}
	return resp, nil
}
