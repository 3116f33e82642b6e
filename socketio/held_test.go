package socketio

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// counted counts writes and fails the last of them.
type counted struct {
	bytes.Buffer
	writes int
	left   int // how many succeed
}

func (c *counted) Close() error { return nil }

func (c *counted) Write(p []byte) (int, error) {
	if c.writes++; c.writes > c.left {
		return 0, io.ErrClosedPipe
	}
	return c.Buffer.Write(p)
}

func TestHeldConn(t *testing.T) {
	under := &counted{left: 4}
	c := &heldConn{ReadWriteCloser: under}
	write := func(n int) error { _, err := c.Write(make([]byte, n)); return err }
	if err := write(3); err != nil || under.Len() != 3 {
		t.Errorf("not held: %d bytes out, %v", under.Len(), err)
	}
	c.hold()
	for range 40 {
		if err := write(4 << 10); err != nil {
			t.Fatal(err)
		}
	}
	if under.writes != 2 || under.Len() != 3+heldBytes {
		t.Errorf("held: %d bytes in %d writes", under.Len(), under.writes)
	}
	if err := c.release(); err != nil || under.writes != 3 || under.Len() != 3+160<<10 {
		t.Errorf("released: %d bytes in %d writes, %v", under.Len(), under.writes, err)
	}
	c.hold()
	if err := errors.Join(write(10), c.release()); err != nil || cap(c.buf) > heldKept {
		t.Errorf("the buffer of a stream that is over: %d bytes, %v", cap(c.buf), err)
	}
	c.hold()
	if err := errors.Join(write(10), c.release()); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a failed write: %v", err)
	}
	if err := write(10); !errors.Is(err, io.ErrClosedPipe) || under.writes != 5 {
		t.Errorf("after it: %v", err)
	}
}

// textOf is an Appender.
type textOf string

func (x textOf) AppendJSON(b []byte) []byte { return append(append(append(b, '"'), x...), '"') }

func TestAppenderIsSentAsItIs(t *testing.T) {
	id := uint64(7)
	f, err := encodeArgs(packetEvent, "/n", &id, "e", []any{textOf("a<b"), 1, Binary("x"), textOf("c")})
	if err != nil || string(f[0].data) != `451-/n,7["e","a<b",1,{"_placeholder":true,"num":0},"c"]` {
		t.Errorf("%s, %v", f[0].data, err)
	}
}
