package shell

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
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
func (s *Shell) watch(ctx context.Context, p *process, nonce string, c Command, res *Result) (int, error) {
	end, over := make(chan outcome, 1), make(chan struct{}, 1)
	await, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		status, err := p.await(await, nonce, over)
		end <- outcome{status, err}
	}()
	var expired <-chan time.Time
	if c.Timeout > 0 {
		t := time.NewTimer(c.Timeout)
		defer t.Stop()
		expired = t.C
	}
	soon := time.NewTimer(watchAfter)
	defer soon.Stop()
	for {
		select {
		case <-soon.C:
			s.guard(p)
			continue
		case <-over:
			s.ended(p, c)
			continue
		case o := <-end:
			select {
			case <-over: // it came first
				s.ended(p, c)
			default:
			}
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
}

// ended calls c.Ended, unless something of the command's still runs.
func (s *Shell) ended(p *process, c Command) {
	if len(s.group.started(p.pid)) == 0 {
		c.Ended()
	}
}

// stop goes through the signals until the command and all it started are gone,
// and waits until the shell has taken them all.
func (s *Shell) stop(p *process, end <-chan outcome) (int, error) {
	var o *outcome
	for _, step := range []struct {
		sig   unix.Signal
		grace time.Duration
	}{{unix.SIGINT, s.o.Grace.Interrupt}, {unix.SIGTERM, s.o.Grace.Terminate}, {unix.SIGKILL, killWait}} {
		if o = s.gone(p, end, o, step.sig, step.grace); o != nil && len(s.group.started(p.pid)) == 0 {
			break
		}
	}
	if o == nil { // the shell itself is what does not end
		p.kill()
		return 0, errEnded
	}
	if o.err == nil {
		o.err = s.calm(p)
	}
	return o.status, o.err
}

const (
	killWait = 500 * time.Millisecond // for the kernel to take killed processes away
	goneTick = 5 * time.Millisecond
)

// calm lets a shell that has answered take the signals that are still on their way,
// before its state is read and before they could reach another command.
func (s *Shell) calm(p *process) error {
	ctx, stop := context.WithTimeout(context.Background(), calmWait)
	defer stop()
	nonce := newNonce()
	err := s.submit(p, s.bare(nonce))
	if err == nil {
		_, err = p.await(ctx, nonce, nil)
	}
	if err != nil {
		p.kill()
		return errEnded
	}
	return nil
}

const calmWait = 2 * time.Second

// gone sends sig and waits up to grace for the command's end and that of all it
// started. A process that comes meanwhile gets sig as well.
func (s *Shell) gone(p *process, end <-chan outcome, o *outcome, sig unix.Signal, grace time.Duration) *outcome {
	limit := time.NewTimer(grace)
	defer limit.Stop()
	tick := time.NewTicker(goneTick)
	defer tick.Stop()
	gated := o == nil && p.gate()
	if o == nil {
		p.wake(gated)
	}
	for told := map[int]bool{}; ; {
		left := s.group.started(p.pid)
		if o != nil && len(left) == 0 {
			return o
		}
		if p.tell(left, told, sig) {
			continue // until all have heard: what was just started may start more
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

// gate closes the gate (see there) before what the shell runs next. A program that took
// the shell's place by exec has none, and the signal would kill it.
func (p *process) gate() bool {
	caught, _ := signals(p.pid)
	return caught.has(gateSignal) && unix.Kill(p.pid, gateSignal) == nil
}

// wake ends by SIGINT what the shell itself does or waits in, such as reading the output
// of a substitution. That must come before its children end, or it would go on with the
// command that wanted the output. No SIGINT is sent where it waits for a child and the
// gate is closed: bash 5.2 forgets the gate over a SIGINT that is trapped
// (run_interrupt_trap resets catch_flag). It is halted meanwhile, so that where it was
// seen is where it gets the signal.
func (p *process) wake(gated bool) {
	unix.Kill(p.pid, unix.SIGSTOP)
	for began := time.Now(); stat(p.pid).moving() && time.Since(began) < haltWait; {
		time.Sleep(haltTick)
	}
	if !gated || !waitsForChild(p.pid) {
		unix.Kill(p.pid, unix.SIGINT)
	}
	unix.Kill(p.pid, unix.SIGCONT)
}

const (
	haltTick = 50 * time.Microsecond
	haltWait = 2 * time.Second // a machine under load, a system call that cannot be interrupted
)

// waitsForChild goes by /proc/PID/syscall (proc(5)); a kernel without that says no. Of a
// process that could not be halted it assumes the worse.
func waitsForChild(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", pid))
	nr, _, _ := strings.Cut(string(text), " ")
	n, bad := strconv.Atoi(nr)
	return err == nil && (bad != nil || n == unix.SYS_WAIT4 || n == unix.SYS_WAITID)
}

// tell sends sig to those of pids that were not told yet, and says whether there were
// any. Copies of the shell, which run parts of the text in ( ) or a pipeline, are halted
// first and told SIGTERM before a program is told anything: none of them may see its
// child end and go on. One that ignores SIGINT on purpose (trap ” INT) is left in peace
// until SIGTERM; one that does because it runs in the background is not.
func (p *process) tell(pids []int, told map[int]bool, sig unix.Signal) (fresh bool) {
	var copies, programs []int
	for _, pid := range pids {
		switch {
		case told[pid]:
			continue
		case !p.copied(pid):
			programs = append(programs, pid)
		case sig == unix.SIGINT && ignoresInterrupt(pid):
			continue // looked at again: one that was just forked may be on its way there
		default:
			copies = append(copies, pid)
		}
		told[pid] = true
	}
	for _, pid := range copies {
		unix.Kill(pid, unix.SIGSTOP)
	}
	for _, pid := range copies {
		signal(pid, p.lethal(pid, sig))
	}
	for _, pid := range programs {
		signal(pid, sig)
	}
	return len(copies)+len(programs) > 0
}

// lethal is what ends a copy of the shell at once: SIGTERM in the place of SIGINT. One
// that was just forked may still ignore that as its parent does; it has run nothing.
func (p *process) lethal(pid int, sig unix.Signal) unix.Signal {
	if sig != unix.SIGINT {
		return sig
	}
	_, ignored := signals(pid)
	if _, as := signals(p.pid); ignored.has(unix.SIGTERM) && ignored == as {
		return unix.SIGKILL
	}
	return unix.SIGTERM
}

// copied tells whether a process is the shell itself, forked.
func (p *process) copied(pid int) bool {
	return p.image != "" && image(pid) == p.image
}

// image is what a process runs, with its arguments.
func image(pid int) string {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	args, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || err2 != nil {
		return ""
	}
	return exe + "\x00" + string(args)
}

// ignoresInterrupt tells whether a process ignores SIGINT but, other than one that a
// shell put into the background (POSIX XCU 2.11), not SIGQUIT.
func ignoresInterrupt(pid int) bool {
	_, ignored := signals(pid)
	return ignored.has(unix.SIGINT) && !ignored.has(unix.SIGQUIT)
}

// sigset is a set of signals as /proc/PID/status shows it (proc(5)).
type sigset uint64

func (s sigset) has(sig unix.Signal) bool { return s>>(sig-1)&1 != 0 }

// signals are those that a process catches and ignores.
func signals(pid int) (caught, ignored sigset) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		switch {
		case err != nil:
		case key == "SigCgt":
			caught = sigset(n)
		case key == "SigIgn":
			ignored = sigset(n)
		}
	}
	return caught, ignored
}

// signal sends sig, and SIGCONT so that a stopped process takes it. An error means
// that the process is gone.
func signal(pid int, sig unix.Signal) {
	unix.Kill(pid, sig)
	unix.Kill(pid, unix.SIGCONT)
}
