package overlay

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xattrArgs is struct xattr_args of linux/xattr.h.
type xattrArgs struct {
	value       uint64
	size, flags uint32
}

// listXattr is listxattrat(2), which takes a third of the time of the name in
// /proc that kernels before 6.13 need. It does not follow a link.
func (t target) listXattr(buf []byte) (int, error) {
	name, err := unix.BytePtrFromString(t.name)
	if err != nil {
		return 0, err
	}
	n, _, e := unix.Syscall6(unix.SYS_LISTXATTRAT, t.dir.Fd(), uintptr(unsafe.Pointer(name)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
	if errors.Is(e, unix.ENOSYS) {
		return unix.Llistxattr(t.path(), buf)
	}
	return int(n), orNil(e)
}

// probeXattr is getxattrat(2) for nothing but whether there is such an attribute:
// ENODATA if there is not.
func (t target) probeXattr(attr string) error {
	name, err := unix.BytePtrFromString(t.name)
	if err != nil {
		return err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return err
	}
	var args xattrArgs
	_, _, e := unix.Syscall6(unix.SYS_GETXATTRAT, t.dir.Fd(), uintptr(unsafe.Pointer(name)), unix.AT_SYMLINK_NOFOLLOW,
		uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if errors.Is(e, unix.ENOSYS) {
		_, err := unix.Lgetxattr(t.path(), attr, nil)
		return err
	}
	return orNil(e)
}

func orNil(e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
