// Package faults lets a test choose one system call of a process, of all those
// that change a file system or that read one, and make it fail, or do something at
// that very moment: cut the power, say.
//
// The process is a child of the test. It puts a seccomp filter on itself, which
// hands each such call to the test before the kernel does it
// (seccomp_unotify(2)). So no call is missed, whichever library makes it, and
// the code under test has no seam. It is for tests alone, on amd64 and arm64.
package faults

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Install puts the filter for calls on this process, for all threads and for ever, and
// hands the listener to the test through the socket that stands in fd. What it
// starts from then on has the filter too, and is let pass.
func Install(fd int, calls Calls) error {
	prog := calls.program()
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	err := unix.Sendmsg(fd, []byte{0}, unix.UnixRights(int(listener)), nil, 0)
	return errors.Join(err, unix.Close(int(listener)))
}

// program lets everything pass but the calls.
func (calls Calls) program() []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		jset = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{{Code: load, K: 0}} // seccomp_data.nr
	for nr, c := range calls {
		if c.only == 0 {
			p = append(p, unix.SockFilter{Code: jeq, Jf: 1, K: uint32(nr)}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF})
			continue
		}
		p = append(p, unix.SockFilter{Code: jeq, Jf: 4, K: uint32(nr)},
			unix.SockFilter{Code: load, K: uint32(16 + 8*c.arg)}, // seccomp_data.args, little endian
			unix.SockFilter{Code: jset, Jf: 1, K: c.only},
			unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_USER_NOTIF},
			unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	}
	return append(p, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
}

// notification is struct seccomp_notif, linux/seccomp.h.
type notification struct {
	ID    uint64
	PID   uint32 // the thread
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

// answer is struct seccomp_notif_resp.
type answer struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// Control is how the process tells the test when to count.
type Control struct{ fd int }

// Connect gives the control of the socket in fd.
func Connect(fd int) Control { return Control{fd} }

// Arm makes the nth call from now on, counted from 1, the chosen one.
func (c Control) Arm(n int) error {
	_, _, err := c.ask(fmt.Sprintf("arm %d", n))
	return err
}

// Disarm ends the counting. It returns how many calls there were, and which was
// the chosen one, if it was reached.
func (c Control) Disarm() (calls int, chosen string, err error) { return c.ask("disarm") }

func (c Control) ask(what string) (n int, text string, err error) {
	if err := unix.Sendto(c.fd, []byte(what), 0, nil); err != nil {
		return 0, "", os.NewSyscallError("send", err)
	}
	buf := make([]byte, 4096)
	for {
		got, _, err := unix.Recvfrom(c.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got == 0 {
			return 0, "", errors.Join(errors.New("the test is gone"), err)
		}
		_, err = fmt.Sscanf(string(buf[:got]), "%d %q", &n, &text)
		return n, text, err
	}
}
