package shell

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Interrupt ends the running command: SIGINT, then SIGTERM, then SIGKILL to all
// that it started, with the graces between. It does not wait; Run returns when it
// is done. Without a running command it does nothing.
func (s *Shell) Interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running {
		return
	}
	select {
	case s.cancel <- struct{}{}:
	default: // one is on its way
	}
}

// outcome is what await returned.
type outcome struct {
	status int
	err    error
}

// watch waits for the command's end and ends it when asked to.
func (s *Shell) watch(ctx context.Context, p *process, nonce string, limit time.Duration, res *Result) (int, error) {
	end := make(chan outcome, 1)
	await, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		status, err := p.await(await, nonce)
		end <- outcome{status, err}
	}()
	var expired <-chan time.Time
	if limit > 0 {
		t := time.NewTimer(limit)
		defer t.Stop()
		expired = t.C
	}
	select {
	case o := <-end:
		return o.status, o.err
	case <-expired:
		res.TimedOut = true
	case <-ctx.Done():
		res.Interrupted = true
	case <-s.cancel:
		res.Interrupted = true
	case <-s.closed:
		res.Interrupted = true
		s.group.kill(p.pid)
		p.kill()
		return 0, errEnded
	}
	return s.stop(p, end)
}

// stop goes through the signals until the command and all it started are gone.
func (s *Shell) stop(p *process, end <-chan outcome) (int, error) {
	var o *outcome
	for _, step := range []struct {
		sig   unix.Signal
		grace time.Duration
	}{{unix.SIGINT, s.o.Grace.Interrupt}, {unix.SIGTERM, s.o.Grace.Terminate}, {unix.SIGKILL, killWait}} {
		if o = s.gone(p, end, o, step.sig, step.grace); o != nil && len(s.group.started(p.pid)) == 0 {
			return o.status, o.err
		}
	}
	if o == nil { // the shell itself is what does not end
		p.kill()
		o = &outcome{err: errEnded}
	}
	return o.status, o.err
}

const (
	killWait = 500 * time.Millisecond // for the kernel to take killed processes away
	goneTick = 5 * time.Millisecond
)

// gone sends sig and waits up to grace for the command's end and that of all it
// started. A process that comes meanwhile gets sig as well: when a child dies of
// SIGTERM or SIGKILL, the shell goes on with what follows in the text, and so it
// does after a SIGINT that reached it while it forked, before it waited for the
// child. That is why the shell is sent SIGINT, before each new process is.
func (s *Shell) gone(p *process, end <-chan outcome, o *outcome, sig unix.Signal, grace time.Duration) *outcome {
	limit := time.NewTimer(grace)
	defer limit.Stop()
	tick := time.NewTicker(goneTick)
	defer tick.Stop()
	for told, first := map[int]bool{}, true; ; first = false {
		left := s.group.started(p.pid)
		if o != nil && len(left) == 0 {
			return o
		}
		fresh := slices.ContainsFunc(left, func(pid int) bool { return !told[pid] })
		if o == nil && (first || fresh || sig != unix.SIGINT) {
			signal(p.pid, unix.SIGINT)
		}
		for _, pid := range left {
			if !told[pid] {
				told[pid] = true
				signal(pid, sig)
			}
		}
		select {
		case got := <-end:
			o = &got
		case <-tick.C:
		case <-limit.C:
			return o
		case <-s.closed:
			return o
		}
	}
}

// signal sends sig, and SIGCONT so that a stopped process takes it. An error means
// that the process is gone.
func signal(pid int, sig unix.Signal) {
	unix.Kill(pid, sig)
	unix.Kill(pid, unix.SIGCONT)
}
