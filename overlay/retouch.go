package overlay

import (
	"bytes"
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
)

// retouch gives a file of base the mode, owner and time that the view shows, where
// nothing else was changed: a command like chmod -R leaves as many of them as there
// are files. It looks at each by its name in the directories that are open anyway,
// which takes a quarter of the system calls of a lookup. It is not done where there
// is more to it, extended attributes, flags or another name, or where it fails.
//
// The last part of a is the directory of to.
func (c *commit) retouch(a *entry, to target) (done bool) {
	from, st, ok := c.shell(a.dir.parts, to.name)
	if !ok {
		return false
	}
	if c.siblings.has(st) { // another name of it was copied, see metadata
		return false
	}
	var old unix.Stat_t
	if unix.Fstatat(int(to.dir.Fd()), to.name, &old, unix.AT_SYMLINK_NOFOLLOW) != nil ||
		old.Mode&unix.S_IFMT != unix.S_IFREG || old.Nlink != 1 || old.Size != st.Size {
		return false
	}
	var buf [512]byte
	if n, err := to.listXattr(buf[:]); err != nil && !errors.Is(err, unix.EOPNOTSUPP) || n > 0 {
		return false
	}
	return sameFlags(from, to) && to.redress(&old, st)
}

// shell finds the one file of the layers by a name, if it is attributes alone, and
// none but those of its inode.
func (c *commit) shell(parts []part, name string) (from target, st *unix.Stat_t, ok bool) {
	for _, p := range parts {
		if p.layer >= c.split {
			break
		}
		var found unix.Stat_t
		err := unix.Fstatat(int(p.f.Fd()), name, &found, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil || st != nil || found.Mode&unix.S_IFMT != unix.S_IFREG {
			return from, st, false
		}
		from, st = target{p.f, name}, &found
	}
	if st == nil {
		return from, st, false
	}
	var buf [512]byte
	n, err := from.listXattr(buf[:])
	if err != nil || n == 0 {
		return from, st, false
	}
	for n := range bytes.SplitSeq(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
		switch string(n) {
		case private + "metacopy":
			ok = true
		case private + "redirect":
			return from, st, false
		default:
			if !bytes.HasPrefix(n, []byte(private)) {
				return from, st, false
			}
		}
	}
	return from, st, ok
}

// redress changes what differs. If it cannot, whoever looks closer tells why.
func (t target) redress(old, st *unix.Stat_t) bool {
	dir, mode := int(t.dir.Fd()), st.Mode&0o7777
	owned := old.Uid == st.Uid && old.Gid == st.Gid
	if owned && old.Mode == st.Mode && old.Mtim == st.Mtim {
		return true
	}
	crash.Point("overlay.commit.metadata")
	if !owned && unix.Fchownat(dir, t.name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	if (!owned || old.Mode != st.Mode) && unix.Fchmodat(dir, t.name, mode, 0) != nil { // chown takes set-user-ID away
		return false
	}
	if old.Mtim == st.Mtim {
		return true
	}
	times := []unix.Timespec{{Sec: st.Atim.Sec, Nsec: st.Atim.Nsec}, {Sec: st.Mtim.Sec, Nsec: st.Mtim.Nsec}}
	return unix.UtimesNanoAt(dir, t.name, times, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// sameFlags tells whether two files have the same inode flags, none of which
// forbids a change. It does not if that cannot be told without opening them (before
// Linux 6.17).
func sameFlags(x, y target) bool {
	const (
		forbid = 0x8 | 0x10                  // FS_XFLAG_IMMUTABLE, APPEND of linux/fs.h
		shown  = forbid | 0x20 | 0x40 | 0x80 // SYNC, NOATIME, NODUMP
	)
	a, errx := x.xflags()
	b, erry := y.xflags()
	return errx == nil && erry == nil && a&shown == b&shown && a&forbid == 0
}

// xflags is file_getattr(2). A filesystem without flags has none.
func (t target) xflags() (uint64, error) {
	name, err := unix.BytePtrFromString(t.name)
	if err != nil {
		return 0, err
	}
	var a struct { // struct file_attr of linux/fs.h
		xflags uint64
		_      [4]uint32
	}
	_, _, e := unix.Syscall6(unix.SYS_FILE_GETATTR, t.dir.Fd(), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&a)), unsafe.Sizeof(a), unix.AT_SYMLINK_NOFOLLOW, 0)
	if e == unix.EOPNOTSUPP || e == unix.ENOTTY {
		return 0, nil
	}
	return a.xflags, orNil(e)
}
