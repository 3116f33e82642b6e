package agent

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"deployx/socketio"
)

const (
	// maxTries is how often an event is sent to a backend that does not ack it
	// though the connection stays.
	maxTries = 3
	// window is how many events of a lane may wait for their acks at once, so
	// that a batch is not slowed by the way to the backend and back.
	window = 32
	// maxUnacked bounds the events of a lane that were sent and wait for an ack
	// or the next try, when the backend acks nothing.
	maxUnacked = 256
)

// event is one durable event.
type event struct {
	key
	n       uint64
	name    string
	lane    string          // events of one lane go out in order
	once    bool            // not sent twice on one connection, acked or not
	final   bool            // it settles its key
	payload json.RawMessage // until it is in the journal
	at      span            // in the journal; guarded by its mu

	// before is what must be on its way first: the command's output.
	before func(ctx context.Context) error
	// gone is called when the event has left the outbox.
	gone func()

	// Guarded by the outbox's mu.
	conn  uint64 // connection it was sent on last, 0 if it is to be sent
	tries int
	over  bool
}

// outbox delivers the journal's events: in order per lane, each with an ack,
// again after a reconnect. Up to window of a lane are on their way at once. On a
// new connection those that were not acked go out again first, oldest first: so
// an event comes for the first time after all that are before it in its lane.
// What ends a request (final) waits for the acks of what else belongs to it,
// for a backend may handle events that come together in any order.
//
// An ack that does not come within patience holds nothing up, and the names of
// events that this backend does not ack are remembered as long as the connection.
//
// A try counts only if the connection outlives ackTimeout: a lost connection
// says nothing about the event. A backend that freezes is found out by the
// heartbeat before three tries have passed.
type outbox struct {
	link       *link
	journal    *journal
	log        logrus.FieldLogger
	patience   time.Duration
	ackTimeout time.Duration

	ctx  context.Context // ends when the agent does: nothing is sent any more
	wg   sync.WaitGroup
	wake chan struct{} // closed and made anew when something was added or settled

	mu      sync.Mutex
	lanes   map[string][]*event
	silent  map[string]bool // names not acked on connection conn
	conn    uint64
	closing bool
}

// add puts events, which are in the journal, in line.
func (o *outbox) add(events ...*event) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, e := range events {
		line, running := o.lanes[e.lane]
		o.lanes[e.lane] = append(line, e)
		if !running && !o.closing {
			o.wg.Go(func() { o.run(e.lane) })
		}
	}
	o.signal()
}

// signal wakes everybody who waits. The caller holds mu.
func (o *outbox) signal() {
	close(o.wake)
	o.wake = make(chan struct{})
}

// run serves one lane.
func (o *outbox) run(lane string) {
	for o.ctx.Err() == nil {
		conn, changed := o.link.now()
		e, wake := o.pick(lane, conn)
		if e != nil {
			o.send(e, conn)
			continue
		}
		select {
		case <-o.ctx.Done():
		case <-changed:
		case <-wake:
		}
	}
}

// pick finds the next event to send on a connection.
func (o *outbox) pick(lane string, conn uint64) (*event, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if conn == 0 {
		return nil, o.wake
	}
	if o.conn != conn {
		o.conn, o.silent = conn, map[string]bool{}
	}
	line := o.lanes[lane]
	for i, e := range line {
		if e.conn == conn {
			continue
		}
		if i >= maxUnacked && o.silent[line[0].name] {
			o.mu.Unlock()
			o.settle(line[0], "gave up waiting for an acknowledgement: too many are waiting")
			o.mu.Lock()
			return nil, closed
		}
		if o.heldUp(e, line[:i]) {
			break
		}
		e.conn = conn
		return e, nil
	}
	return nil, o.wake
}

// heldUp says whether e has to wait for the acks of those before it. The caller
// holds mu.
func (o *outbox) heldUp(e *event, before []*event) bool {
	unacked, ours := 0, 0
	for _, b := range before {
		if o.silent[b.name] || b.once {
			continue
		}
		unacked++
		if b.key == e.key {
			ours++
		}
	}
	return unacked >= window || e.final && ours > 0
}

// closed is a channel that is ready.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// send sends e on a connection. Who waits for its ack is another.
func (o *outbox) send(e *event, conn uint64) {
	if e.before != nil {
		if e.before(o.ctx) != nil {
			return // the connection is lost; the next one begins anew
		}
	}
	payload, err := o.journal.payload(e)
	if err != nil {
		o.settle(e, err.Error())
		return
	}
	if silent, first := o.manner(e); silent && first {
		o.sendSilently(e, conn, payload)
		return
	}
	var answer func(context.Context) (socketio.Message, error)
	err = sendFitting(payload, func(p json.RawMessage) (err error) {
		answer, err = o.link.Ask(o.ctx, e.name, p)
		return err
	})
	switch {
	case err == nil:
		o.wg.Go(func() { o.await(e, conn, answer) })
	case errors.Is(err, socketio.ErrTooLarge):
		o.settle(e, "it is larger than the backend takes")
	}
	// Else the connection is lost, and the event goes out on the next one.
}

// await waits for e's ack, as long as it takes.
func (o *outbox) await(e *event, conn uint64, answer func(context.Context) (socketio.Message, error)) {
	ctx, cancel := context.WithTimeout(o.ctx, o.waiting(e))
	defer cancel()
	if !e.once { // legacy backends seldom ack, and nothing waits for that
		patience := time.AfterFunc(o.patience, func() { o.late(e, conn) })
		defer patience.Stop()
	}
	_, err := answer(ctx)
	switch {
	case err == nil:
		o.settle(e, "") // first: late must not come between
		o.mute(e.name, conn, false)
	case errors.Is(err, socketio.ErrAckTimeout), errors.Is(err, context.DeadlineExceeded):
		o.unanswered(e, conn)
	}
}

// waiting is how long an ack may take. What is sent once is given as long as
// three tries: a backend that froze is found out by then.
func (o *outbox) waiting(e *event) time.Duration {
	if e.once {
		return maxTries * o.ackTimeout
	}
	return o.ackTimeout
}

// sendSilently sends an event of a name that the backend is known not to ack:
// in order, without waiting.
func (o *outbox) sendSilently(e *event, conn uint64, payload json.RawMessage) {
	err := sendFitting(payload, func(p json.RawMessage) error { return o.link.Emit(o.ctx, e.name, p) })
	if errors.Is(err, socketio.ErrTooLarge) {
		o.settle(e, "it is larger than the backend takes")
	}
	if err != nil {
		return // as in send
	}
	o.wg.Go(func() {
		timer := time.NewTimer(o.waiting(e))
		defer timer.Stop()
		select {
		case <-timer.C:
			o.unanswered(e, conn)
		case <-o.ctx.Done():
		}
	})
}

// unanswered counts a try, if its connection is still there.
func (o *outbox) unanswered(e *event, conn uint64) {
	if now, _ := o.link.now(); now != conn {
		return
	}
	o.mute(e.name, conn, true)
	if o.again(e, conn) {
		o.settle(e, "the backend does not acknowledge it")
	}
}

// again puts e back to be sent on the same connection, and says whether that
// has been done often enough.
func (o *outbox) again(e *event, conn uint64) (enough bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e.conn != conn {
		return false
	}
	if e.tries++; e.tries >= maxTries || e.once {
		return true
	}
	e.conn = 0
	o.signal()
	return false
}

// manner says whether the backend is known not to ack events like e, and
// whether this is e's first try.
func (o *outbox) manner(e *event) (silent, first bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.silent[e.name], e.tries == 0
}

// late is for an ack that has not come within patience.
func (o *outbox) late(e *event, conn uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !e.over {
		o.hush(e.name, conn, true)
	}
}

func (o *outbox) mute(name string, conn uint64, silent bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hush(name, conn, silent)
}

// hush is mute for a caller that holds mu.
func (o *outbox) hush(name string, conn uint64, silent bool) {
	if o.conn == conn && o.silent[name] != silent {
		o.silent[name] = silent
		o.signal()
	}
}

// settle takes e out. why says, if it was not acked, what became of it.
func (o *outbox) settle(e *event, why string) {
	o.mu.Lock()
	if e.over {
		o.mu.Unlock()
		return
	}
	e.over = true
	line := o.lanes[e.lane]
	for i := range line {
		if line[i] == e {
			o.lanes[e.lane] = append(line[:i:i], line[i+1:]...)
			break
		}
	}
	o.signal()
	o.mu.Unlock()
	if why != "" {
		o.log.WithFields(logrus.Fields{"event": e.name, "id": e.id}).Debugf("not acknowledged: %s", why)
	}
	if err := o.journal.acked(e); err != nil {
		o.log.WithError(err).Warn("could not note an acknowledgement; the event may be sent again")
	}
	if e.gone != nil {
		e.gone()
	}
}

// left is how many events are to be delivered; those that were sent to a
// backend that does not ack them are as good as delivered.
func (o *outbox) left() (n int, wake <-chan struct{}) {
	conn, _ := o.link.now()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, line := range o.lanes {
		for _, e := range line {
			if e.conn != conn || conn == 0 || !o.silent[e.name] && !e.once {
				n++
			}
		}
	}
	return n, o.wake
}

// flush waits until everything is delivered, or ctx ends.
func (o *outbox) flush(ctx context.Context) {
	for {
		n, wake := o.left()
		if n == 0 {
			return
		}
		select {
		case <-ctx.Done():
			o.log.Warnf("%d results could not be delivered; they are sent when the agent runs again", n)
			return
		case <-wake:
		}
	}
}

// close waits for the lanes. ctx must have ended.
func (o *outbox) close() {
	o.mu.Lock()
	o.closing = true
	o.mu.Unlock()
	o.wg.Wait()
}
