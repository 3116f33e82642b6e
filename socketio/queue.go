package socketio

import (
	"context"
	"sync"

	"golang.org/x/sync/semaphore"
)

// itemOverhead is counted for each item in a queue, so that a flood of tiny
// events is bounded too.
const itemOverhead = 128

// queue is a first-in first-out line bounded by the weight of what is in it,
// for many who push and one who takes.
type queue[T any] struct {
	room  *semaphore.Weighted
	limit int64
	ready chan struct{} // holds a token when there may be something to take
	stop  chan struct{} // closed by finish

	mu       sync.Mutex
	items    []weighted[T]
	finished bool
}

type weighted[T any] struct {
	value  T
	weight int64
}

func newQueue[T any](limit int) *queue[T] {
	return &queue[T]{
		room:  semaphore.NewWeighted(int64(limit)),
		limit: int64(limit),
		ready: make(chan struct{}, 1),
		stop:  make(chan struct{}),
	}
}

// push puts v in line. It waits for room, in the order of the callers, until
// ctx ends or the queue is finished (then ErrDisconnected). Something larger
// than the whole queue waits until it is alone in it.
func (q *queue[T]) push(ctx context.Context, v T, size int) error {
	w := q.weigh(size)
	if !q.room.TryAcquire(w) {
		if err := q.wait(ctx, w); err != nil {
			return err
		}
	}
	return q.add(v, w)
}

// tryPush is push that does not wait; false means that there was no room.
func (q *queue[T]) tryPush(v T, size int) (bool, error) {
	w := q.weigh(size)
	if !q.room.TryAcquire(w) {
		return false, nil
	}
	return true, q.add(v, w)
}

func (q *queue[T]) weigh(size int) int64 {
	return min(int64(size)+itemOverhead, q.limit)
}

func (q *queue[T]) wait(ctx context.Context, w int64) error {
	wait, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-q.stop:
			cancel()
		case <-wait.Done():
		}
	})
	err := q.room.Acquire(wait, w)
	cancel()
	watch.Wait()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return ErrDisconnected
}

func (q *queue[T]) add(v T, w int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.finished {
		q.room.Release(w)
		return ErrDisconnected
	}
	q.items = append(q.items, weighted[T]{v, w})
	q.wake()
	return nil
}

// wake leaves a token for the taker.
func (q *queue[T]) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// finish refuses everything new and frees who waits to push. What is in line
// can still be taken. Calling it again does nothing.
func (q *queue[T]) finish() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.finished {
		q.finished = true
		close(q.stop)
	}
	q.wake()
}

// take removes the first item if fits agrees. The caller gives its weight back
// with release. last says that nothing is in line and nothing will be.
func (q *queue[T]) take(fits func(T) bool) (it weighted[T], ok, last bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.items) == 0 {
		q.items = nil // the memory of a burst is not kept
		return it, false, q.finished
	}
	if !fits(q.items[0].value) {
		q.wake()
		return it, false, false
	}
	it = q.items[0]
	q.items[0] = weighted[T]{}
	q.items = q.items[1:]
	return it, true, false
}

func (q *queue[T]) release(w int64) { q.room.Release(w) }
