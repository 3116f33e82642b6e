package socketio

import (
	"context"
	"errors"
	"net"
	"testing"
)

// closing is a transport as the library's is while it refuses a message: writes find
// it closed before the reader has told why.
type closing struct {
	why     error
	written chan struct{}
	aborted chan struct{}
}

func (c *closing) name() string { return WebSocket }

func (c *closing) read(context.Context) (frame, error) {
	<-c.written
	return frame{}, c.why
}

func (c *closing) write(context.Context, []frame) error {
	close(c.written)
	return net.ErrClosed
}

func (c *closing) close(context.Context) {}
func (c *closing) abort()                { close(c.aborted) }

// TestReaderTellsWhy: that a connection was closed is no reason when the reader knows
// one. Both come at about the same time, so each may be first a hundred times.
func TestReaderTellsWhy(t *testing.T) {
	for range 100 {
		c := &closing{errors.New("too big"), make(chan struct{}), make(chan struct{})}
		e := &engine{
			cfg: &Config{}, out: newOutbox(100), written: make(chan struct{}), tr: c,
			handshake: handshake{PingInterval: 60_000, PingTimeout: 60_000},
		}
		ctx := e.start(func(frame) error { return nil })
		if err := e.out.send(short(t), []frame{{data: []byte("4")}}); err != nil {
			t.Fatal(err)
		}
		wait(t, ctx.Done(), "end")
		if err := context.Cause(ctx); !errors.Is(err, c.why) {
			t.Fatalf("ended by %v", err)
		}
		e.wg.Wait()
		e.watchdog.Stop()
		wait(t, c.aborted, "abort")
	}
}
