package overlay

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
)

// Since Linux 6.12 the kernel itself lists the mount namespaces (NS_MNT_GET_NEXT,
// ioctl_nsfs(2)), and the mounts of one that are newer than another
// (listmount(2)). So the question whether the shown mount has copies costs some
// microseconds a namespace, however many processes and mounts there are, and sees
// namespaces that no process is in.

// onlyHere tells whether the superblock shown on the tree has no mount but the one
// there, and copies that follow it and that nobody holds. False means that it is
// not known: the mounts and processes must be looked through.
func (d *Driver) onlyHere() bool {
	shown, dev, err := mounts.UniqueID(d.tree)
	if err != nil {
		return false
	}
	only := true
	err = eachNamespace(func(ns namespace) error {
		copies, err := ns.mountsOf(dev, shown)
		if err != nil || len(copies) == 0 {
			return err
		}
		only = !ns.own && len(copies) == 1 && ns.follows(copies[0].Parent, shown) && ns.idle(d.tree, copies[0].ID)
		if !only {
			return errEnough
		}
		return nil
	})
	return err == nil && only
}

// gone tells whether no namespace has a mount of the device any more that is shown, an
// id, or newer. False means that it is not known.
func gone(shown, dev uint64) bool {
	none := true
	err := eachNamespace(func(ns namespace) error {
		left, err := ns.mountsOf(dev, shown-1)
		if none = err == nil && len(left) == 0; !none {
			return errEnough
		}
		return nil
	})
	return err == nil && none
}

// namespace is a mount namespace.
type namespace struct {
	fd  int
	id  uint64
	own bool // the caller's
}

var errEnough = errors.New("enough")

// The requests of linux/nsfs.h: _IOR(0xb7, N, struct mnt_ns_info).
const (
	nsMntGetInfo = 0x8010b70a
	nsMntGetNext = 0x8010b70b
	nsMntGetPrev = 0x8010b70c
)

// eachNamespace calls f for every mount namespace that the caller may see, until
// f returns errEnough or another error, which is the result.
func eachNamespace(f func(namespace) error) error {
	fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // a namespace handle
	own := namespace{fd: fd, own: true}
	if _, own.id, err = nsIoctl(fd, nsMntGetInfo); err != nil {
		return err
	}
	if err := f(own); err != nil {
		return ignoreEnough(err)
	}
	for _, request := range []uint{nsMntGetNext, nsMntGetPrev} {
		if err := eachFrom(own.fd, request, f); err != nil {
			return ignoreEnough(err)
		}
	}
	return nil
}

func ignoreEnough(err error) error {
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

// eachFrom goes to one end of the kernel's list.
func eachFrom(from int, request uint, f func(namespace) error) error {
	at, ours := from, false
	defer func() {
		if ours {
			unix.Close(at) //nolint:errcheck // a namespace handle
		}
	}()
	for {
		fd, id, err := nsIoctl(at, request)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		if ours {
			unix.Close(at) //nolint:errcheck // a namespace handle
		}
		at, ours = fd, true
		if err := f(namespace{fd: fd, id: id}); err != nil {
			return err
		}
	}
}

func nsIoctl(fd int, request uint) (ret int, id uint64, err error) {
	info := struct {
		size, mounts uint32
		id           uint64
	}{size: 16}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return 0, 0, errno
	}
	return int(r), info.id, nil
}

// mountsOf are the mounts of a device that were made after another mount: every
// copy of a mount is newer than it, for the kernel counts its unique ids up.
func (n namespace) mountsOf(dev, after uint64) (found []mounts.Mount, err error) {
	ids := make([]uint64, 64)
	for {
		got, err := mounts.List(n.id, mounts.Root, after, ids)
		if err != nil {
			return nil, err
		}
		for _, id := range ids[:got] {
			after = id
			m, err := mounts.Stat(n.id, id)
			if errors.Is(err, unix.ENOENT) {
				continue // unmounted meanwhile
			}
			if err != nil {
				return nil, err
			}
			if m.Dev == dev {
				found = append(found, m)
			}
		}
		if got < len(ids) {
			return found, nil
		}
	}
}

// follows tells whether what is mounted beside shown, a mount of ours, is mounted on
// that mount too (mount_namespaces(7)).
func (n namespace) follows(mount, shown uint64) bool {
	group := groupAround(shown)
	m, err := mounts.Stat(n.id, mount)
	return err == nil && group != 0 && (m.Group == group || m.Master == group)
}

// groupAround is the peer group of the mount that one of ours stands on; 0 if it is
// private.
func groupAround(shown uint64) uint64 {
	m, err := mounts.Stat(0, shown)
	if err != nil {
		return 0
	}
	on, err := mounts.Stat(0, m.Parent)
	if err != nil {
		return 0
	}
	return on.Group
}

// idle asks the kernel in that namespace whether anybody holds the mount with that
// id on path (see probe). It enters on a thread that ends with the question.
func (n namespace) idle(path string, id uint64) bool {
	answer := make(chan bool)
	go func() {
		runtime.LockOSThread() // for good: it is not to be used for anything else
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread() // the first one stands for the process in /proc
			answer <- n.idle(path, id)
			return
		}
		if unix.Unshare(unix.CLONE_FS) != nil || unix.Setns(n.fd, unix.CLONE_NEWNS) != nil {
			answer <- false
			return
		}
		got, err := mountID(path)
		if err != nil || got != id {
			answer <- false
			return
		}
		busy, err := probe(path)
		answer <- err == nil && !busy
	}()
	return <-answer
}
