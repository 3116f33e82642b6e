package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	ossignal "os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one run of the shell program. Its standard input is a packet
// socket: lines go in, one to a packet, so that the shell cannot read ahead, and
// answers come back the same way. A command's redirections hide it.
type process struct {
	cmd     *exec.Cmd
	pid     int
	image   string // see copied
	ctl     *os.File
	answers chan string   // closed by listen
	exited  chan struct{} // closed when the process was reaped
	state   *os.ProcessState
	told    bool // a Result says that it ended; whoever has the turn may use it
	readers sync.WaitGroup
}

// launch starts the program in the group, with no controlling terminal.
func (s *Shell) launch() (*process, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	defer theirs.Close()
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, errors.Join(err, unix.Close(fds[0]))
	}
	p := &process{ctl: os.NewFile(uintptr(fds[0]), "control"), answers: make(chan string, 4), exited: make(chan struct{})}
	if p.cmd, err = s.exec(theirs); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", s.program, err), p.ctl.Close())
	}
	p.pid = p.cmd.Process.Pid
	p.readers.Go(p.reap)
	p.readers.Go(p.listen)
	return p, nil
}

func (s *Shell) exec(stdin *os.File) (*exec.Cmd, error) {
	defer unignore()()
	// What the owner itself inherited is not for commands (Linux 5.11).
	unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	start := func(cgroup int) (*exec.Cmd, error) {
		c := &exec.Cmd{Path: s.program, Args: s.dialect.argv(s.program), Env: s.o.Env, Dir: "/", Stdin: stdin}
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if a := s.account; a != nil {
			c.SysProcAttr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid, Groups: a.groups}
		}
		if cgroup >= 0 {
			c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, cgroup
		}
		return c, c.Start()
	}
	if fd := s.group.fd(); fd >= 0 {
		if c, err := start(fd); err == nil {
			return c, nil
		}
		s.group.giveUp() // CLONE_INTO_CGROUP is of Linux 5.7 and may be denied
	}
	return start(-1)
}

// unignore makes sure that the child does not inherit an ignored SIGINT or
// SIGQUIT, as a process started with "&" does: no cancel would reach it.
func unignore() func() {
	var undo []func()
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGQUIT} {
		if ossignal.Ignored(sig) {
			ch := make(chan os.Signal, 1)
			ossignal.Notify(ch, sig)
			undo = append(undo, func() { ossignal.Ignore(sig) })
		}
	}
	return func() {
		for _, f := range undo {
			f()
		}
	}
}

// listen passes answers on until the process ended and all it said was read.
func (p *process) listen() {
	defer close(p.answers)
	buf := make([]byte, 256)
	for {
		n, err := p.ctl.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) { // set by reap
			err = control(p.ctl, func(fd int) (err error) {
				n, err = unix.Read(fd, buf)
				return err
			})
		}
		if errors.Is(err, unix.ECONNRESET) {
			continue // told once, before what is still to be read: lines were left unread
		}
		if err != nil || n == 0 {
			return
		}
		p.pass(string(buf[:n]))
	}
}

// pass hands one answer over. A command that floods the socket waits for the next
// await, and at the process's end what is too much is dropped.
func (p *process) pass(answer string) {
	select {
	case p.answers <- answer:
		return
	default:
	}
	select {
	case p.answers <- answer:
	case <-p.exited:
	}
}

// reap waits for the process. Jobs may hold its end of the socket open, so listen
// is told.
func (p *process) reap() {
	defer close(p.exited)
	err := p.cmd.Wait()
	var exit *exec.ExitError
	if err == nil || errors.As(err, &exit) {
		p.state = p.cmd.ProcessState
	}
	p.ctl.SetReadDeadline(time.Unix(1, 0))
}

func (p *process) dead() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// send writes one packet, which the shell reads as one line.
func (p *process) send(line string) error {
	_, err := io.WriteString(p.ctl, line+"\n")
	return err
}

// unread tells whether the shell has lines left to read.
func (p *process) unread() bool {
	raw, err := p.ctl.SyscallConn()
	if err != nil {
		return true
	}
	n := 1
	raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
	return err != nil || n > 0
}

// kill ends the process at once and waits until it is reaped.
func (p *process) kill() {
	p.cmd.Process.Kill() // an error means that it is gone
	p.release()
}

// end closes the control socket, which ends an idle shell, and kills one that stays.
func (p *process) end() {
	p.ctl.Close()
	select {
	case <-p.exited:
	case <-time.After(time.Second):
		p.cmd.Process.Kill()
	}
	p.release()
}

func (p *process) release() {
	<-p.exited
	p.ctl.Close()
	p.readers.Wait()
}

// errStuck says that the shell read all lines and answered none: it skips them
// (set -r, a DEBUG trap under extdebug) or a function stands in the way.
var errStuck = errors.New("shell no longer answers")

// errEnded says that the shell process ended, errIdle that it did so before the
// command began.
var (
	errEnded = errors.New("shell ended")
	errIdle  = fmt.Errorf("%w while idle", errEnded)
)

// submit hands over the script.
func (s *Shell) submit(p *process, sc script) error {
	for f, text := range map[*scratch]string{sc.files.main: sc.main, sc.files.arm: sc.arm, sc.files.post: sc.post} {
		if err := f.fill(text); err != nil {
			return fmt.Errorf("write script: %w", err)
		}
	}
	dot := s.dialect.special(".")
	again := "case ${__deployx_d-} in '') " + dot + " " + sc.files.post.path + ";; esac"
	for _, line := range []string{
		dot + " " + sc.files.main.path,
		again, again, again, // a cancel's signals can cut short one line each: see wake
		"__deployx_d=", // the shell reads it only once it is past the post script: see await
	} {
		err := p.send(line)
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return nil // ended, maybe by a line before: await knows whether the command began
		}
		if err != nil {
			return fmt.Errorf("send script: %w", err)
		}
	}
	return nil
}

// A silent shell is looked at every stuckCheck, and is stuck when it has nothing
// left to read for stuckLooks in a row: an answer that it sent before has arrived
// by then, also where the host is so busy that this process, which must read it,
// hardly gets a turn.
const (
	stuckCheck = 100 * time.Millisecond
	stuckLooks = 10
)

// await returns the status that comes with nonce. A word on over says that the text has
// ended; nil where nobody asks.
func (p *process) await(ctx context.Context, nonce string, over chan<- struct{}) (int, error) {
	tick := time.NewTicker(stuckCheck)
	defer tick.Stop()
	ended := errIdle
	for read := 0; ; {
		select {
		case a, ok := <-p.answers:
			if !ok {
				<-p.exited
				return 0, ended
			}
			switch got, word, _ := strings.Cut(a, " "); {
			case got != nonce:
			case word == "start":
				ended = errEnded
			case word == "end":
				select {
				case over <- struct{}{}:
				default:
				}
			default:
				return strconv.Atoi(word)
			}
		case <-tick.C:
			if read++; p.unread() {
				read = 0
			}
			if read == stuckLooks {
				return 0, errStuck
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// spawn starts a process and brings it to the state that want holds.
func (s *Shell) spawn(ctx context.Context, want Context) (Context, error) {
	st, err := parseContext(want)
	if err != nil {
		return nil, err
	}
	if want != nil && st.dialect != s.dialect {
		return nil, fmt.Errorf("%w: context is of a %s shell, %s is not one", ErrDialect, st.dialect, filepath.Base(s.program))
	}
	p, err := s.launch()
	if err != nil {
		return nil, err
	}
	dir := st.dir
	if dir == "" {
		dir = s.o.Dir
	}
	at := dir
	if s.o.Away {
		at = "/"
	}
	nonce := newNonce()
	err = s.submit(p, s.between(st, s.dialect.restore(st, at), nonce))
	if err == nil {
		_, err = p.await(ctx, nonce, nil)
	}
	var got *state
	if err == nil {
		got, err = s.captured(or0(st.status))
	}
	if err != nil {
		p.kill()
		return nil, fmt.Errorf("restore shell: %w", err)
	}
	p.image = image(p.pid) // not before it answers: Start returns while the kernel still puts the arguments in place
	s.mu.Lock()
	defer s.mu.Unlock()
	s.proc, s.away = p, s.o.Away
	if s.o.Away {
		got.dir = dir // where the next command goes
	}
	got.lastArg, got.pipe = st.lastArg, st.pipe
	return got.encode(), nil
}

// captured reads what the post script wrote, less what no other shell needs.
func (s *Shell) captured(status string) (*state, error) {
	text, err := s.wires.state.read()
	if err != nil {
		return nil, err
	}
	st, err := capture(s.dialect, text)
	if err != nil {
		return nil, err
	}
	st.status = status
	var b strings.Builder
	for _, v := range variables(st.vars) {
		if kept(v.name) {
			b.WriteString(v.text + "\n")
		}
	}
	st.vars = b.String()
	return st, nil
}
