package socketio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// engine is the client's side of one Engine.IO session: one goroutine reads,
// one writes, one tries the upgrade, and a timer watches the heartbeat. The
// first error ends it, for good.
type engine struct {
	cfg    *Config
	client *http.Client
	url    *url.URL
	header http.Header

	handshake handshake
	out       *outbox
	watchdog  *time.Timer
	cancel    context.CancelCauseFunc
	closing   atomic.Bool
	wg        sync.WaitGroup
	written   chan struct{} // closed when the writer has ended

	writing sync.Mutex // held while frames are written; the upgrade holds it to move

	mu sync.Mutex
	tr transport
}

// dialEngine opens a session over the first transport that works. It has no
// goroutine yet: see start.
func dialEngine(ctx context.Context, cfg *Config, client *http.Client, base *url.URL, header http.Header) (*engine, error) {
	e := &engine{
		cfg: cfg, client: client, url: base, header: header,
		out: newOutbox(cfg.SendBuffer), written: make(chan struct{}),
	}
	var failed error
	for i, name := range cfg.Transports {
		left := len(cfg.Transports) - i
		err := e.open(ctx, name, cfg.ConnectTimeout/time.Duration(left))
		if err == nil {
			return e, nil
		}
		failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
		if ctx.Err() != nil || hopeless(err) {
			break
		}
	}
	return nil, failed
}

// hopeless errors are the same for every transport.
func hopeless(err error) bool {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return true
	}
	var h *HandshakeError
	return errors.As(err, &h) && (h.Status == http.StatusUnauthorized || h.Status == http.StatusTooManyRequests)
}

func (e *engine) open(ctx context.Context, name string, timeout time.Duration) error {
	if name == WebSocket {
		ws, err := e.dial(ctx, "", timeout)
		if err != nil {
			return err
		}
		f, err := e.exchange(ctx, ws, timeout)
		if err == nil {
			e.handshake, err = parseHandshake(f)
		}
		if err != nil {
			ws.abort()
			return &HandshakeError{Status: http.StatusSwitchingProtocols, Body: string(clip(f.data)), Err: err}
		}
		e.tr = ws
		return nil
	}
	return e.openPolling(ctx, timeout)
}

func (e *engine) openPolling(ctx context.Context, timeout time.Duration) error {
	// The answer is read after this returns, so its context has to outlive
	// it, and ctx too, whose end begins an orderly close: only the wait is
	// bounded here.
	answer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	timer := time.AfterFunc(timeout, cancel)
	stop := context.AfterFunc(ctx, cancel)
	poll := newPollTransport(e.client, e.address(Polling, ""), e.header, e.cfg)
	f, err := poll.open(answer)
	stop()
	inTime := timer.Stop()
	if err == nil || f.data != nil {
		e.handshake, err = parseHandshake(f)
		if err != nil {
			err = &HandshakeError{Status: http.StatusOK, Body: string(clip(f.data)), Err: err}
		}
	}
	if err != nil {
		poll.finish()
		cancel()
		if !inTime {
			err = fmt.Errorf("no answer within %v: %w", timeout, err)
		}
		return err
	}
	poll.cancel = cancel
	poll.url = e.address(Polling, e.handshake.SID)
	poll.maxPayload = e.handshake.MaxPayload
	e.tr = poll
	return nil
}

// address is the URL for a transport (engine.io-protocol v4, "Query
// parameters").
func (e *engine) address(transport, sid string) string {
	u := *e.url
	q := u.Query()
	q.Set("EIO", "4")
	q.Set("transport", transport)
	if sid != "" {
		q.Set("sid", sid)
	}
	u.RawQuery = q.Encode()
	return u.String()
}

func (e *engine) dial(ctx context.Context, sid string, timeout time.Duration) (*wsTransport, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return dialWebSocket(ctx, e.client, e.address(WebSocket, sid), e.header, e.cfg)
}

// exchange writes frames to a WebSocket that has no reader yet and waits for
// the next frame.
func (e *engine) exchange(ctx context.Context, ws *wsTransport, timeout time.Duration, frames ...frame) (frame, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, ws.abort)
	defer stop()
	if err := ws.write(ctx, frames); err != nil {
		return frame{}, err
	}
	f, err := ws.read(ctx)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("no answer within %v: %w", timeout, err)
	}
	return f, err
}

// start sets the session going. handle gets every message frame, on the
// reader's goroutine. The returned context ends with the session; its cause
// says why.
func (e *engine) start(handle func(frame) error) context.Context {
	ctx, cancel := context.WithCancelCause(context.Background())
	e.cancel = cancel
	patience := e.handshake.patience()
	e.watchdog = time.AfterFunc(patience, func() { e.fail(ErrHeartbeat) })
	touch := func() { e.watchdog.Reset(patience) }
	switch t := e.tr.(type) {
	case *wsTransport:
		t.touch = touch
	case *pollTransport:
		t.touch = touch
	}
	context.AfterFunc(ctx, func() { e.current().abort() })
	e.wg.Go(func() { e.fail(e.readLoop(ctx, handle)) })
	e.wg.Go(func() {
		defer close(e.written)
		err := e.writeLoop(ctx)
		if errors.Is(err, net.ErrClosed) && e.current().name() == WebSocket {
			<-ctx.Done() // we closed it, or the library did for the reader, who tells why
		}
		if err != nil {
			e.fail(err)
		}
	})
	if p, ok := e.tr.(*pollTransport); ok && e.canUpgrade() {
		e.wg.Go(func() { e.upgrade(ctx, p, touch) })
	}
	return ctx
}

// fail ends the session; only the first reason counts. Whatever goes wrong
// while this side closes is a part of closing.
func (e *engine) fail(err error) {
	if e.closing.Load() {
		err = ErrClosed
	}
	e.cancel(err)
}

func (e *engine) canUpgrade() bool {
	return slices.Contains(e.handshake.Upgrades, WebSocket) && slices.Contains(e.cfg.Transports, WebSocket)
}

func (e *engine) current() transport {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.tr
}

func (e *engine) readLoop(ctx context.Context, handle func(frame) error) error {
	for ctx.Err() == nil {
		f, err := e.current().read(ctx)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil {
			return err
		}
		switch f.kind() {
		case framePing:
			e.out.hurry(frame{data: append([]byte{framePong}, f.body()...)})
		case frameMessage:
			if err := handle(f); err != nil {
				return err
			}
		case frameClose:
			return errTransportClosed
		}
	}
	return context.Cause(ctx)
}

func (e *engine) writeLoop(ctx context.Context) error {
	const maxBatch = 64 << 10
	for {
		batch, err := e.out.pop(ctx, 64, maxBatch)
		if err != nil || len(batch) == 0 {
			return err
		}
		if err := e.write(ctx, batch); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
}

func (e *engine) write(ctx context.Context, batch []frame) error {
	e.writing.Lock()
	defer e.writing.Unlock()
	return e.current().write(ctx, batch)
}

// close ends the session: it writes what is in line and says goodbye, for at
// most timeout, and returns when every goroutine has ended.
func (e *engine) close(timeout time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { e.fail(ErrClosed) })
	defer stop()
	e.closing.Store(true)
	e.out.finish()
	<-e.written
	e.current().close(ctx)
	e.fail(ErrClosed)
	e.current().abort()
	e.watchdog.Stop()
	e.wg.Wait()
}
