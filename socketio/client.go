package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Handler is called with an event from the server. Handlers run one after the
// other, in the order of the wire, never on the goroutine that reads, so they
// may send and wait for acknowledgements. ctx ends with Run's. A panic goes to
// the function set by [Client.OnError].
type Handler func(ctx context.Context, e *Event)

// Connection is what [Client.OnConnect] is told.
type Connection struct {
	ID string // the server's name for this connection

	// Recovered says that the server took up the last connection where it
	// broke: rooms are joined still, and the events missed come next.
	// A server with that turned on adds one string, the event's offset, to the
	// arguments of events without acknowledgement.
	Recovered bool
}

// Client keeps one connection to a server. All methods may be called from any
// goroutine; the On methods before Run.
type Client struct {
	cfg  Config
	base *url.URL
	http *http.Client

	handlers     callbacks[Handler]
	onConnect    func(context.Context, Connection)
	onDisconnect func(context.Context, error)
	onError      func(context.Context, error)

	running onceFlag
	calls   *dispatcher
	live    atomic.Pointer[session]

	mu     sync.Mutex
	pid    string // private id of a session that can be recovered
	offset string // the last event of it that we have
}

// New checks the configuration and makes a client. It connects in Run.
func New(cfg Config) (*Client, error) {
	cfg, base, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, base: base, http: newHTTPClient(&cfg)}
	c.onConnect = func(context.Context, Connection) {}
	c.onDisconnect = func(context.Context, error) {}
	c.onError = func(context.Context, error) {}
	return c, nil
}

// On sets the handler of an event. A second call replaces it.
func (c *Client) On(event string, h Handler) { c.handlers.set(event, h) }

// OnAny sets the handler of all events that have none of their own.
func (c *Client) OnAny(h Handler) { c.handlers.setAny(h) }

// OnConnect sets what is called once per connection, before the handler of any
// of its events.
func (c *Client) OnConnect(f func(context.Context, Connection)) { c.onConnect = f }

// OnDisconnect sets what is called once for every call of OnConnect's, after
// the handlers of the connection's events, with the reason.
func (c *Client) OnDisconnect(f func(ctx context.Context, reason error)) { c.onDisconnect = f }

// OnError sets what is called with every try to connect that failed (among
// others [*HandshakeError], [*ConnectError], [ErrConnectTimeout]) and with
// every panic of a handler ([*HandlerPanic]).
func (c *Client) OnError(f func(context.Context, error)) { c.onError = f }

// Run connects, and connects again whenever the connection is lost or refused,
// until ctx ends. Then it writes what is in line, says goodbye (both within
// CloseTimeout), makes the calls that are still due and returns ctx's error. It
// can be called once.
func (c *Client) Run(ctx context.Context) error {
	if !c.running.first() {
		return errors.New("socket.io: Run was called before; make a new Client")
	}
	c.calls = newDispatcher(c.cfg.HandlerBuffer, func(p *HandlerPanic) { c.report(ctx, p) })
	var wg sync.WaitGroup
	wg.Go(c.calls.run)
	for tries := 0; ctx.Err() == nil; {
		lasted, err := c.connection(ctx)
		if lasted >= c.cfg.Backoff.Stable {
			tries = 0
		}
		sleep(ctx, c.cfg.Backoff.delay(tries, err))
		tries++
	}
	c.calls.finish()
	wg.Wait()
	c.http.CloseIdleConnections()
	return ctx.Err()
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// connection is one try: it returns when the connection is over, with how long
// it lasted and why it ended.
func (c *Client) connection(ctx context.Context) (time.Duration, error) {
	s, err := c.open(ctx)
	if err != nil {
		if ctx.Err() == nil {
			c.calls.must(func() { c.onError(ctx, err) })
		}
		return 0, err
	}
	begin := time.Now()
	select {
	case <-ctx.Done():
	case <-s.ctx.Done():
	}
	err = s.close(c.cfg.CloseTimeout)
	return time.Since(begin), err
}

// report tells of a panic, even if the function told panics too.
func (c *Client) report(ctx context.Context, p *HandlerPanic) {
	defer func() { _ = recover() }() // there is nobody else to tell
	c.onError(ctx, p)
}

// Emit puts an event in line for the writer. It waits while the send buffer is
// full. nil does not mean that the server has it: for that see
// [Client.EmitAck]. Without a connection it returns ErrDisconnected at once,
// and what is in line when a connection breaks is lost: nothing is kept for the
// next one.
func (c *Client) Emit(ctx context.Context, event string, args ...any) error {
	s := c.live.Load()
	if s == nil {
		return ErrDisconnected
	}
	return s.port.emit(ctx, event, args)
}

// EmitAck sends an event and waits for the server's acknowledgement, until ctx
// ends, AckTimeout passes (ErrAckTimeout) or the connection is lost
// (ErrDisconnected). In each of these cases the server may have got the event
// or not.
func (c *Client) EmitAck(ctx context.Context, event string, args ...any) (Message, error) {
	s := c.live.Load()
	if s == nil {
		return Message{}, ErrDisconnected
	}
	return s.port.emitAck(ctx, c.cfg.AckTimeout, event, args)
}

// Ask is [Client.EmitAck] in two steps, for those who send more before the
// acknowledgement has come. It puts the event in line, behind what was sent by
// earlier calls of Ask, Emit and EmitAck that have returned. Then wait, which
// must be called once, waits for the acknowledgement as EmitAck does; AckTimeout
// counts from that call.
func (c *Client) Ask(ctx context.Context, event string, args ...any) (wait func(context.Context) (Message, error), err error) {
	s := c.live.Load()
	if s == nil {
		return nil, ErrDisconnected
	}
	answered, err := s.port.ask(ctx, event, args)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (Message, error) {
		ctx, cancel := context.WithTimeoutCause(ctx, c.cfg.AckTimeout, ErrAckTimeout)
		defer cancel()
		return answered(ctx)
	}, nil
}

// Connected tells whether there is a connection now.
func (c *Client) Connected() bool { return c.live.Load() != nil }

// MaxPayload is the largest frame, in bytes, that the server takes and Emit
// sends: an event's JSON with a few bytes around it, or an attachment, counted
// as the base64 that polling would make of it. Without a connection it is 1,000,000, the default of both servers.
func (c *Client) MaxPayload() int {
	if s := c.live.Load(); s != nil {
		return s.port.maxFrame
	}
	return defaultMaxPayload
}

// Transport is WebSocket or Polling, or empty without a connection.
func (c *Client) Transport() string {
	if s := c.live.Load(); s != nil {
		return s.engine.current().name()
	}
	return ""
}

// auth asks for CONNECT's payload and adds what recovery needs. The result is
// an object, as Node demands, or nil.
func (c *Client) auth(ctx context.Context) (any, error) {
	var object map[string]json.RawMessage
	if c.cfg.Auth != nil {
		payload, err := c.cfg.Auth(ctx)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(payload)
		if err == nil {
			err = json.Unmarshal(text, &object)
		}
		if err != nil {
			return nil, fmt.Errorf("Config.Auth must give a JSON object or nil: %w", err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid != "" {
		if object == nil {
			object = map[string]json.RawMessage{}
		}
		object["pid"], _ = json.Marshal(c.pid) // a string always can be
		object["offset"], _ = json.Marshal(c.offset)
	}
	if object == nil {
		return nil, nil
	}
	return object, nil
}
