package mounts

import (
	"io/fs"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Root stands for all mounts of a namespace in List (LSMT_ROOT of linux/mount.h).
const Root = ^uint64(0)

// request is struct mnt_id_req of linux/mount.h.
type request struct {
	size, _       uint32
	id, param, ns uint64
}

// newRequest asks the namespace ns, by its id; 0 is ours, and all that the kernel
// knows of before 6.11.
func newRequest(ns, id, param uint64) *request {
	r := &request{size: 24, id: id, param: param, ns: ns} // MNT_ID_REQ_SIZE_VER0
	if ns != 0 {
		r.size = 32 // MNT_ID_REQ_SIZE_VER1
	}
	return r
}

// UniqueID is the id of the mount that path leads to, which is never used again,
// and its device. ENOSYS before Linux 6.8.
func UniqueID(path string) (id, dev uint64, err error) {
	var st unix.Statx_t
	err = unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID_UNIQUE, &st)
	if err == nil && st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		err = unix.ENOSYS
	}
	if err != nil {
		return 0, 0, &fs.PathError{Op: "statx", Path: path, Err: err}
	}
	return st.Mnt_id, unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

// List fills ids with unique ids of the mounts in a namespace that stand on the
// mount on, or Root, and were made after another one, oldest first, and says how many
// there are: as many as there is room for, or all (listmount(2), Linux 6.8; another
// namespace than ours, 6.11).
func List(ns, on, after uint64, ids []uint64) (n int, err error) {
	r, _, errno := unix.Syscall6(unix.SYS_LISTMOUNT, uintptr(unsafe.Pointer(newRequest(ns, on, after))),
		uintptr(unsafe.Pointer(unsafe.SliceData(ids))), uintptr(len(ids)), 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// A Mount is what Stat tells of one.
type Mount struct {
	ID, Parent, Dev uint64
	Group, Master   uint64 // as shared:N and master:N in mountinfo; 0 for none
}

// Stat tells of a mount in a namespace, by its unique id (statmount(2); the same
// kernels as List).
func Stat(ns, id uint64) (m Mount, err error) {
	const sbBasic, mntBasic = 1, 2 // STATMOUNT_*
	var b struct {                 // struct statmount of linux/mount.h
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
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(newRequest(ns, id, sbBasic|mntBasic))),
		uintptr(unsafe.Pointer(&b)), unsafe.Sizeof(b), 0, 0, 0)
	if errno != 0 {
		return m, errno
	}
	if b.mask&(sbBasic|mntBasic) != sbBasic|mntBasic {
		return m, unix.ENOTSUP
	}
	return Mount{ID: b.id, Parent: b.parent, Dev: unix.Mkdev(b.major, b.minor), Group: b.group, Master: b.master}, nil
}

// Source tells the type of the filesystem that a mount of our namespace shows, and
// what it was mounted from, as mountinfo prints it (statmount(2) with
// STATMOUNT_SB_SOURCE, Linux 6.13).
func Source(id uint64) (fstype, source string, err error) {
	const fsType, sbSource = 0x20, 0x200 // STATMOUNT_*
	var b struct {                       // struct statmount of linux/mount.h
		size, _  uint32
		mask     uint64
		_        [5]uint32 // device, magic, flags
		fsType   uint32
		_        [8]uint64 // ids, attributes, propagation
		_        [2]uint32 // root, mount point
		_        uint64    // the namespace
		_        uint32    // subtype
		sbSource uint32
		_        [384]byte
		text     [4096]byte
	}
	r := newRequest(0, id, fsType|sbSource)
	_, _, errno := unix.Syscall6(unix.SYS_STATMOUNT, uintptr(unsafe.Pointer(r)),
		uintptr(unsafe.Pointer(&b)), unsafe.Sizeof(b), 0, 0, 0)
	if errno != 0 {
		return "", "", errno
	}
	if b.mask&(fsType|sbSource) != fsType|sbSource || max(b.fsType, b.sbSource) >= uint32(len(b.text)) {
		return "", "", unix.ENOTSUP
	}
	return unix.ByteSliceToString(b.text[b.fsType:]), unix.ByteSliceToString(b.text[b.sbSource:]), nil
}
