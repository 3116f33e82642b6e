package session

import (
	"context"
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
}

// maintain starts upkeep for the view that is shown now, unless some is still
// under way. What must be done under the tree's lock is done at once: it costs
// a moment in every sixty-fourth command.
func (s *Session) maintain() error {
	if err := s.rec.SaveStack(); err != nil {
		s.o.Warn("upkeep: keep the stack: " + err.Error())
	}
	m, ok := s.drv.(snapshot.Maintainer)
	if !ok || s.upkeep.running() {
		return nil
	}
	v, err := s.rec.Below(s.rec.Head())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.upkeep = upkeep{cancel, done}
	go func() {
		defer close(done)
		defer cancel()
		if err := m.Maintain(ctx, v); err != nil && ctx.Err() == nil {
			s.o.Warn("upkeep: " + err.Error())
		}
	}()
	return nil
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
	if u.done == nil {
		return
	}
	select {
	case <-u.done:
	case <-time.After(grace):
		u.cancel()
		<-u.done
	}
}
