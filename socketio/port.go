package socketio

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// reserved are event names that Node's client and server use themselves; a
// Node peer drops the connection when it gets one
// (socket.io-parser, "RESERVED_EVENTS").
var reserved = map[string]bool{
	"connect": true, "connect_error": true, "disconnect": true,
	"disconnecting": true, "newListener": true, "removeListener": true,
}

// port is one side of one connection: it sends the events of a namespace and
// keeps the acknowledgements that are still to come.
type port struct {
	namespace string
	out       *outbox
	done      <-chan struct{} // closed when the connection is over
	maxFrame  int             // largest frame that the other side takes

	mu      sync.Mutex
	lastID  uint64
	waiting map[uint64]chan Message
}

func newPort(namespace string, out *outbox, done <-chan struct{}, maxFrame int) *port {
	return &port{namespace: namespace, out: out, done: done, maxFrame: maxFrame}
}

// emit encodes the event and puts it in line.
func (p *port) emit(ctx context.Context, name string, args []any) error {
	return p.sendEvent(ctx, nil, name, args)
}

func (p *port) sendEvent(ctx context.Context, id *uint64, name string, args []any) error {
	frames, err := p.encodeEvent(id, name, args)
	if err != nil {
		return err
	}
	if p.over() {
		return ErrDisconnected
	}
	return p.out.send(ctx, frames)
}

// over tells whether the connection has ended.
func (p *port) over() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *port) encodeEvent(id *uint64, name string, args []any) ([]frame, error) {
	if reserved[name] {
		return nil, fmt.Errorf("emit %q: the name is reserved by the protocol, choose another", name)
	}
	frames, err := encodeArgs(packetEvent, p.namespace, id, name, args)
	if err != nil {
		return nil, fmt.Errorf("emit %q: %w", name, err)
	}
	if err := p.fits(frames); err != nil {
		return nil, fmt.Errorf("emit %q: %w", name, err)
	}
	return frames, nil
}

// fits holds the frames against what the other side takes.
func (p *port) fits(frames []frame) error {
	for _, f := range frames {
		if n := f.payloadLen(); n > p.maxFrame {
			return fmt.Errorf("%w: %d bytes, %d are accepted", ErrTooLarge, n, p.maxFrame)
		}
	}
	return nil
}

// emitAck sends an event and waits for its acknowledgement.
func (p *port) emitAck(ctx context.Context, timeout time.Duration, name string, args []any) (Message, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, ErrAckTimeout)
	defer cancel()
	wait, err := p.ask(ctx, name, args)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = context.Cause(ctx)
		}
		return Message{}, err
	}
	return wait(ctx)
}

// ask sends an event. wait, to be called once, waits for its acknowledgement.
func (p *port) ask(ctx context.Context, name string, args []any) (wait func(context.Context) (Message, error), err error) {
	id, answer := p.expect()
	if err := p.sendEvent(ctx, &id, name, args); err != nil {
		p.forget(id)
		return nil, err
	}
	return func(ctx context.Context) (Message, error) {
		defer p.forget(id)
		return p.answered(ctx, answer)
	}, nil
}

func (p *port) answered(ctx context.Context, answer <-chan Message) (Message, error) {
	select {
	case m := <-answer:
		return m, nil
	case <-ctx.Done():
		return Message{}, context.Cause(ctx)
	case <-p.done:
	}
	select { // the answer may have come with the last packets
	case m := <-answer:
		return m, nil
	default:
		return Message{}, ErrDisconnected
	}
}

func (p *port) expect() (uint64, <-chan Message) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting = make(map[uint64]chan Message)
	}
	p.lastID++
	answer := make(chan Message, 1)
	p.waiting[p.lastID] = answer
	return p.lastID, answer
}

func (p *port) forget(id uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.waiting, id)
}

// resolve hands an acknowledgement to whoever waits. One that nobody waits for
// (late, doubled, invented) is dropped.
func (p *port) resolve(pkt *packet) {
	p.mu.Lock()
	answer := p.waiting[pkt.id]
	delete(p.waiting, pkt.id)
	p.mu.Unlock()
	if answer != nil {
		answer <- Message{Args: pkt.args, Attachments: pkt.attachments}
	}
}

// event parses an event of this port, ready to be acknowledged.
func (p *port) event(pkt *packet) (*Event, error) {
	e, err := parseEvent(pkt)
	if err != nil {
		return nil, err
	}
	e.port = p
	return e, nil
}

// Ack answers the event. It does nothing if the sender asked for no
// acknowledgement, and is an error the second time. ErrDisconnected means that
// the connection on which the event came is gone: an ack cannot be sent on
// another one.
func (e *Event) Ack(ctx context.Context, args ...any) error {
	if !e.asked {
		return nil
	}
	frames, err := encodeArgs(packetAck, e.port.namespace, &e.id, nil, args)
	if err != nil {
		return fmt.Errorf("ack %q: %w", e.Name, err)
	}
	if err := e.port.fits(frames); err != nil {
		return fmt.Errorf("ack %q: %w", e.Name, err)
	}
	if !e.acked.first() {
		return fmt.Errorf("ack %q: it was acknowledged before", e.Name)
	}
	if e.port.over() {
		return ErrDisconnected
	}
	return e.port.out.send(ctx, frames)
}
