package overlay

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
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
	shown, dev, err := shownOn(d.tree)
	if err != nil {
		return false
	}
	parent, group := uint64(0), uint64(0)
	only := true
	err = eachNamespace(func(ns namespace) error {
		copies, err := ns.mountsOf(dev, shown)
		if err != nil || len(copies) == 0 {
			return err
		}
		if ns.own || len(copies) > 1 {
			only = false
			return errEnough
		}
		if parent == 0 {
			at, err := statMount(0, shown)
			if err != nil {
				return err
			}
			parent = at.parent
			above, err := statMount(0, parent)
			if err != nil {
				return err
			}
			group = above.group
		}
		if !ns.follows(copies[0].parent, group) || !ns.idle(d.tree, copies[0].id) {
			only = false
			return errEnough
		}
		return nil
	})
	return err == nil && only
}

// shownOn is the unique id of the mount on the tree, and its device.
func shownOn(tree string) (id, dev uint64, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, tree, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID_UNIQUE, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		err = unix.ENOSYS
	}
	return st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor), err
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

// mountIDRequest is struct mnt_id_req of linux/mount.h, MNT_ID_REQ_SIZE_VER1.
type mountIDRequest struct {
	size, _       uint32
	id, param, ns uint64
}

func newMountIDRequest(ns, id, param uint64) mountIDRequest {
	return mountIDRequest{size: uint32(unsafe.Sizeof(mountIDRequest{})), id: id, param: param, ns: ns}
}

// mountStat is what we use of struct statmount of linux/mount.h.
type mountStat struct {
	id, parent, dev uint64
	group, master   uint64 // as shared:N and master:N in mountinfo; 0 for none
}

// statMount is statmount(2) in the namespace ns; 0 is ours.
func statMount(ns, id uint64) (m mountStat, err error) {
	const sbBasic, mntBasic = 1, 2 // STATMOUNT_*
	var b struct {
		size, _       uint32
		mask          uint64
		major, minor  uint32
		_             [2]uint64 // magic, flags, type
		id, parent    uint64
		_             uint64 // the old ids
		_, _          uint64 // attributes, propagation
		group, master uint64
		_             [416]byte
	}
	req := newMountIDRequest(ns, id, sbBasic|mntBasic)
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&b)), unsafe.Sizeof(b), 0, 0, 0)
	if errno != 0 {
		return m, errno
	}
	if b.mask&(sbBasic|mntBasic) != sbBasic|mntBasic {
		return m, unix.ENOTSUP
	}
	return mountStat{id: b.id, parent: b.parent, dev: unix.Mkdev(b.major, b.minor), group: b.group, master: b.master}, nil
}

// mountsOf are the mounts of a device that were made after another mount: every
// copy of a mount is newer than it, for the kernel counts its unique ids up.
func (n namespace) mountsOf(dev, after uint64) (mounts []mountStat, err error) {
	const root = ^uint64(0) // LSMT_ROOT: all of the namespace
	ids := make([]uint64, 64)
	for {
		req := newMountIDRequest(n.id, root, after)
		got, _, errno := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(&req)), uintptr(unsafe.Pointer(&ids[0])), uintptr(len(ids)), 0, 0, 0)
		if errno != 0 {
			return nil, errno
		}
		for _, id := range ids[:got] {
			m, err := statMount(n.id, id)
			if errors.Is(err, unix.ENOENT) {
				continue // unmounted meanwhile
			}
			if err != nil {
				return nil, err
			}
			if m.dev == dev {
				mounts = append(mounts, m)
			}
			after = id
		}
		if int(got) < len(ids) {
			return mounts, nil
		}
	}
}

// follows tells whether what is mounted on the group's members is mounted on that
// mount too (mount_namespaces(7)).
func (n namespace) follows(mount, group uint64) bool {
	m, err := statMount(n.id, mount)
	return err == nil && group != 0 && (m.group == group || m.master == group)
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
