package socketio

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// upgradeTimeout bounds each step of an upgrade. While polling rests, no pong
// is written: so it stays well under the usual pingTimeout of 20 s.
const upgradeTimeout = 10 * time.Second

// upgrade moves a session from polling to WebSocket (engine.io-protocol v4,
// "Upgrade"). If that cannot be done before the point of no return, the
// session stays as it is, which is not an error.
func (e *engine) upgrade(ctx context.Context, poll *pollTransport, touch func()) {
	timeout := min(upgradeTimeout, time.Duration(e.handshake.PingTimeout)*time.Millisecond/2)
	ws, err := e.probe(ctx, timeout)
	if err != nil {
		return
	}
	ws.touch = touch
	if err := e.move(ctx, poll, ws, timeout); err != nil {
		ws.abort()
	}
}

// probe opens a WebSocket for the session and sees whether frames pass.
func (e *engine) probe(ctx context.Context, timeout time.Duration) (*wsTransport, error) {
	ws, err := e.dial(ctx, e.handshake.SID, timeout)
	if err != nil {
		return nil, err
	}
	f, err := e.exchange(ctx, ws, timeout, textFrame(framePing, "probe"))
	if err == nil && string(f.data) != "3probe" {
		err = fmt.Errorf("probe answered by %q", clip(f.data))
	}
	if err != nil {
		ws.abort()
		return nil, err
	}
	return ws, nil
}

// move stops writing, waits until the last GET is answered (the server ends it
// by a noop) and swaps the transports, so that no frame is lost or overtaken.
func (e *engine) move(ctx context.Context, poll *pollTransport, ws *wsTransport, timeout time.Duration) error {
	wait, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	e.writing.Lock()
	defer e.writing.Unlock()
	r := poll.pause()
	defer poll.resume(r)
	select {
	case <-r.reached:
	case <-wait.Done():
		return errors.New("polling did not come to rest")
	}
	if err := ws.write(ctx, []frame{textFrame(frameUpgrade, "")}); err != nil {
		e.fail(fmt.Errorf("upgrade: %w", err)) // the server may have moved already
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.tr = ws
	poll.abort()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return nil
}
