package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A Supervisor watches one child.
type Supervisor struct {
	// Calls are those that the child has given to Install.
	Calls Calls
	// Dirs are where calls count, beside those that mount.
	Dirs []string
	// At is called at the chosen call, which waits. The errno that it returns is
	// what the call fails with; 0 lets it happen.
	At func(what string) unix.Errno

	mu     sync.Mutex
	armed  bool
	at, n  int
	chosen string
}

// Run starts cmd, whose process calls Install and Connect on descriptor 3, and
// waits for its end.
func (s *Supervisor) Run(cmd *exec.Cmd) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "control")
	cmd.ExtraFiles = []*os.File{theirs}
	err = cmd.Start()
	theirs.Close() //nolint:errcheck // the child has it
	if err != nil {
		return errors.Join(err, unix.Close(fds[0]))
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.serve(fds[0], cmd.Process.Pid) })
	err = cmd.Wait()
	serving.Wait()
	return errors.Join(err, unix.Close(fds[0]))
}

// serve takes the listener and then answers what the process asks, until it has
// ended.
func (s *Supervisor) serve(fd, pid int) {
	buf, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := recvmsg(fd, buf, oob)
	if err != nil || n == 0 {
		return
	}
	listener, err := received(oob[:n])
	if err != nil {
		return
	}
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(listener, pid) })
	defer watching.Wait()
	for {
		n, _, _, _, err := recvmsg(fd, buf, nil)
		if err != nil || n == 0 {
			return
		}
		if err := unix.Sendto(fd, []byte(s.reply(string(buf[:n]))), unix.MSG_NOSIGNAL, nil); err != nil {
			return
		}
	}
}

func recvmsg(fd int, p, oob []byte) (n, oobn, flags int, from unix.Sockaddr, err error) {
	for {
		n, oobn, flags, from, err = unix.Recvmsg(fd, p, oob, unix.MSG_CMSG_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return n, oobn, flags, from, err
		}
	}
}

func received(oob []byte) (int, error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return -1, err
	}
	return fds[0], nil
}

func (s *Supervisor) reply(asked string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := fmt.Sscanf(asked, "arm %d", &s.at); err == nil {
		s.armed, s.n, s.chosen = true, 0, ""
	} else {
		s.armed = false
	}
	return fmt.Sprintf("%d %q", s.n, s.chosen)
}

// watch answers for every call until nobody is left who could make one.
func (s *Supervisor) watch(listener, pid int) {
	defer unix.Close(listener)                                                                         //nolint:errcheck // nothing was written
	const setFlags = 0x40082104                                                                        // SECCOMP_IOCTL_NOTIF_SET_FLAGS (6.6): switch to us and back at once
	unix.Syscall(unix.SYS_IOCTL, uintptr(listener), setFlags, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP) //nolint:errcheck // slower without
	for {
		p := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
		if p[0].Revents&unix.POLLIN == 0 {
			if p[0].Revents != 0 {
				return
			}
			continue
		}
		var n notification
		if ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)) != 0 {
			continue // it was killed meanwhile
		}
		a := answer{ID: n.ID, Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if errno := s.decide(n, pid); errno != 0 {
			a.Error, a.Flags = -int32(errno), 0
		}
		ioctl(listener, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a)) // it may have been killed
	}
}

func (s *Supervisor) decide(n notification, pid int) unix.Errno {
	s.mu.Lock()
	armed := s.armed
	s.mu.Unlock()
	if !armed {
		return 0
	}
	what := s.Calls.target(n, pid, s.Dirs)
	if what == "" {
		return 0
	}
	s.mu.Lock()
	s.n++
	chosen := s.n == s.at
	if chosen {
		s.chosen = what
	}
	s.mu.Unlock()
	if !chosen {
		return 0
	}
	return s.At(what)
}

func ioctl(fd int, req uint, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg))
	return errno
}
