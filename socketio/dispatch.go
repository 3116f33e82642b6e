package socketio

import (
	"runtime/debug"
	"sync"
)

// dispatcher calls the caller's functions one after the other, in the order in
// which things happened on the wire, off the read loop. A panic is caught and
// told to onPanic.
type dispatcher struct {
	*queue[func()]
	onPanic func(*HandlerPanic)
}

func newDispatcher(limit int, onPanic func(*HandlerPanic)) *dispatcher {
	return &dispatcher{queue: newQueue[func()](limit), onPanic: onPanic}
}

// run makes the calls until the queue is finished and empty.
func (d *dispatcher) run() {
	always := func(func()) bool { return true }
	for {
		it, ok, last := d.take(always)
		switch {
		case ok:
			d.call(it.value)
			d.release(it.weight)
		case last:
			return
		default:
			<-d.ready
		}
	}
}

func (d *dispatcher) call(call func()) {
	defer func() {
		if v := recover(); v != nil {
			d.onPanic(&HandlerPanic{Value: v, Stack: debug.Stack()})
		}
	}()
	call()
}

// must puts a call in line whatever is there. It is for the few calls that
// come once a connection, which must neither be lost nor hold up an end.
func (d *dispatcher) must(call func()) {
	// Weight 0: the few that are in line at once are not worth waiting for.
	_ = d.add(call, 0)
}

// callbacks holds the caller's functions. They are read under the lock and
// called without it.
type callbacks[H any] struct {
	mu    sync.RWMutex
	named map[string]H
	any   H
}

func (c *callbacks[H]) set(name string, h H) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.named == nil {
		c.named = make(map[string]H)
	}
	c.named[name] = h
}

func (c *callbacks[H]) setAny(h H) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.any = h
}

// find is the function for an event: its own, else the one for all others,
// else the zero H.
func (c *callbacks[H]) find(name string) H {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if h, ok := c.named[name]; ok {
		return h
	}
	return c.any
}
