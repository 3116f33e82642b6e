package overlay

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// forks are the processes that were made while it listened, each with the one that
// made it, as the kernel's process connector tells (drivers/connector/cn_proc.c;
// CONFIG_PROC_EVENTS). By then a process may have ended, and with it all that
// /proc told. The connector speaks to root in the first pid namespace only: elsewhere
// nothing is known.
type forks struct {
	fd    int // -1 without a connector
	from  map[int32]int32
	whole bool // nothing is missing: who is not in from was there before
}

const (
	procConnector = 1 // CN_IDX_PROC, CN_VAL_PROC (linux/connector.h)
	procListen    = 1 // PROC_CN_MCAST_LISTEN (linux/cn_proc.h)
	procIgnore    = 2 // PROC_CN_MCAST_IGNORE
	procFork      = 1 // PROC_EVENT_FORK
)

// listen begins. It cannot fail: see forks.
func listen() *forks {
	f := &forks{fd: -1, from: map[int32]int32{}}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return f
	}
	f.fd = fd
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20) //nolint:errcheck // a short queue does for most
	f.whole = true
	if unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: procConnector}) != nil || f.say(procListen) != nil {
		f.close()
	}
	return f
}

// say sends a struct cn_msg with an operation.
func (f *forks) say(op uint32) error {
	b := make([]byte, unix.NLMSG_HDRLEN+20+4)
	e := binary.NativeEndian
	e.PutUint32(b, uint32(len(b)))
	e.PutUint16(b[4:], unix.NLMSG_DONE)
	e.PutUint32(b[unix.NLMSG_HDRLEN:], procConnector)
	e.PutUint32(b[unix.NLMSG_HDRLEN+4:], procConnector)
	e.PutUint16(b[unix.NLMSG_HDRLEN+16:], 4)
	e.PutUint32(b[unix.NLMSG_HDRLEN+20:], op)
	return os.NewSyscallError("send to process connector", unix.Sendto(f.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func (f *forks) close() {
	if f.fd >= 0 {
		f.say(procIgnore) //nolint:errcheck // older kernels count their listeners by this
		unix.Close(f.fd)  //nolint:errcheck // nothing was written
		f.fd, f.whole = -1, false
	}
}

// drain takes what has been told.
func (f *forks) drain(buf []byte) {
	const event = unix.NLMSG_HDRLEN + 20
	for f.fd >= 0 {
		n, sender, err := unix.Recvfrom(f.fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.ENOBUFS) { // the queue was too short
			f.whole = false
			continue
		}
		if err != nil {
			return
		}
		kernel, ok := sender.(*unix.SockaddrNetlink)
		if e := binary.NativeEndian; ok && kernel.Pid == 0 && n >= event+32 && e.Uint32(buf[event:]) == procFork {
			parent, child := int32(e.Uint32(buf[event+20:])), int32(e.Uint32(buf[event+28:]))
			if parent != child { // no thread
				f.from[child] = parent
			}
		}
	}
}
