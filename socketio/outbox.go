package socketio

import (
	"context"
	"sync"
	"sync/atomic"
)

// outbox is the line between the callers who send and the one writer of a
// connection. Its items are the frames that must go out together: a peer drops
// the connection if a packet comes between an event and its attachments.
type outbox struct {
	*queue[[]frame]

	mu     sync.Mutex
	urgent []frame
}

func newOutbox(limit int) *outbox {
	return &outbox{queue: newQueue[[]frame](limit)}
}

// send puts frames in line and waits for room.
func (o *outbox) send(ctx context.Context, frames []frame) error {
	return o.push(ctx, frames, size(frames))
}

func size(frames []frame) int {
	n := 0
	for _, f := range frames {
		n += len(f.data)
	}
	return n
}

// hurry puts a frame ahead of all items: a heartbeat must not wait behind what
// a slow peer has not read. A frame like one that still waits is dropped, so
// that the peer cannot fill the box by asking.
func (o *outbox) hurry(f frame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, u := range o.urgent {
		if string(u.data) == string(f.data) {
			return
		}
	}
	o.urgent = append(o.urgent, f)
	o.wake()
}

// pop waits for frames and takes a batch of whole items: at most maxFrames and
// about maxBytes, but at least one item. It returns none when the box is
// finished and empty, and ctx's cause when ctx ends first.
func (o *outbox) pop(ctx context.Context, maxFrames, maxBytes int) ([]frame, error) {
	for {
		batch, last := o.batch(maxFrames, maxBytes)
		if len(batch) > 0 || last {
			return batch, nil
		}
		select {
		case <-o.ready:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (o *outbox) batch(maxFrames, maxBytes int) (batch []frame, last bool) {
	o.mu.Lock()
	batch, o.urgent = o.urgent, nil
	o.mu.Unlock()
	n := size(batch)
	fits := func(frames []frame) bool {
		n += size(frames)
		return len(batch) == 0 || len(batch)+len(frames) <= maxFrames && n <= maxBytes
	}
	for {
		it, ok, last := o.take(fits)
		if !ok {
			return batch, last
		}
		batch = append(batch, it.value...)
		o.release(it.weight)
	}
}

// onceFlag is true for its first caller only.
type onceFlag struct{ used atomic.Bool }

func (f *onceFlag) first() bool { return !f.used.Swap(true) }
