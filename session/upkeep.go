package session

import (
	"context"
	"fmt"
	"sync"
	"time"

	"deployx/snapshot"
)

// upkeepGrace is how long Close waits for upkeep that is under way; what is cut
// off is begun anew another time.
const upkeepGrace = time.Second

// upkeep is the driver's work that may go on while commands run, one piece at a
// time.
type upkeep struct {
	cancel context.CancelFunc
	done   chan struct{} // closed by the piece that runs

	mu   sync.Mutex
	next *snapshot.View // what has been shown since that piece began
}

// maintain starts upkeep for the view that is shown now; what is under way goes on
// with it. What must be done under the tree's lock is done at once: it costs
// a moment in every sixty-fourth command.
func (s *Session) maintain() error {
	if err := s.rec.SaveStack(); err != nil {
		s.o.Warn("upkeep: keep the stack: " + err.Error())
	}
	m, ok := s.drv.(snapshot.Maintainer)
	if !ok {
		return nil
	}
	v, err := s.rec.Below(s.rec.Head())
	if err != nil {
		return err
	}
	s.upkeep.start(v, func(ctx context.Context, v snapshot.View) {
		if err := m.Maintain(ctx, v); err != nil && ctx.Err() == nil {
			s.o.Warn("upkeep: " + err.Error())
		}
	})
	return nil
}

// room waits, where the driver has been overtaken by commands, until there is room
// for what the one that is about to run does.
func (s *Session) room(ctx context.Context) error {
	m, ok := s.drv.(snapshot.Maintainer)
	if !ok {
		return nil
	}
	v, err := s.rec.Below(s.rec.Head())
	if err == nil {
		err = m.Room(ctx, v)
	}
	if err != nil {
		return fmt.Errorf("wait for layers to be merged: %w", err)
	}
	return nil
}

// start has work done with v, at once or after what is under way.
func (u *upkeep) start(v snapshot.View, work func(context.Context, snapshot.View)) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.next = &v; u.running() {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	u.cancel, u.done = cancel, done
	go func() {
		defer cancel()
		for v := u.take(done); v != nil; v = u.take(done) {
			work(ctx, *v)
		}
	}()
}

// take is the view to go on with. If there is none the piece is done.
func (u *upkeep) take(done chan struct{}) *snapshot.View {
	u.mu.Lock()
	defer u.mu.Unlock()
	v := u.next
	if u.next = nil; v == nil {
		close(done)
	}
	return v
}

func (u *upkeep) running() bool {
	if u.done == nil {
		return false
	}
	select {
	case <-u.done:
		return false
	default:
		return true
	}
}

// end waits for what is under way, and after the grace cuts it off.
func (u *upkeep) end(grace time.Duration) {
	u.mu.Lock()
	u.next = nil
	cancel, done := u.cancel, u.done
	u.mu.Unlock()
	if done == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(grace):
		cancel()
		<-done
	}
}
