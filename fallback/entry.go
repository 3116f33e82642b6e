package fallback

import (
	"time"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// stamp is a time as the filesystem keeps it. Seconds and nanoseconds stand
// apart because ext4 goes to the year 2446 and an int64 of nanoseconds to 2262.
type stamp struct {
	sec  int64
	nsec uint32
}

func (a stamp) before(b stamp) bool {
	return a.sec < b.sec || a.sec == b.sec && a.nsec < b.nsec
}

func (a stamp) add(d time.Duration) stamp {
	n := int64(a.nsec) + int64(d%time.Second)
	s := a.sec + int64(d/time.Second)
	for n >= 1e9 {
		s, n = s+1, n-1e9
	}
	for n < 0 {
		s, n = s-1, n+1e9
	}
	return stamp{s, uint32(n)}
}

// object says where the bytes of a regular file are in the store. The zero
// object has none there: the file is empty or one single hole.
type object struct {
	pack uint64
	off  int64 // whole: the pack is this file, holes and all
}

const whole = -1

// later: for these bytes there was no room when they were found. Once they are in
// the store they are a pack of their own; until then the tree alone may have them.
const later = -2

// alone says that an object's pack holds nothing else.
func (o object) alone() bool { return o.off == whole || o.off == later }

// entry is what is kept of one path: what a restore needs, and what tells
// cheaply whether the path is still the same.
type entry struct {
	mode         uint32 // type and permission bits, as in st_mode
	uid, gid     uint32
	size         int64
	mtime        stamp
	ctime, btime stamp // to find changes; a restore cannot set them
	ino          uint64
	rdev         uint64
	link         uint64 // paths of one state with one link number are hard links of each other
	obj          object
	target       string // of a symbolic link
	xattrs       string // encoded by packXattrs; "" when there are none
	flags        uint32 // inode flags of files and directories, see keptFlags
	racy         bool   // ctime was not older than the scan: see scan.racy
}

func (e *entry) kind() uint32    { return e.mode & unix.S_IFMT }
func (e *entry) isDir() bool     { return e.kind() == unix.S_IFDIR }
func (e *entry) isRegular() bool { return e.kind() == unix.S_IFREG }

// letter is the type as the record writes it.
func (e *entry) letter() snapshot.FileType {
	return snapshot.TypeOf(e.kind())
}

// untouched says that st shows no trace of a change since e was captured. A
// racy entry can have changed without one.
func (e *entry) untouched(st *stat) bool {
	now := entryOf(st, stamp{})
	return e.looks(&now)
}

// looks says that a stat call told the same of both.
func (e *entry) looks(o *entry) bool {
	return e.ino == o.ino && e.ctime == o.ctime && e.mtime == o.mtime &&
		e.mode == o.mode && e.uid == o.uid && e.gid == o.gid &&
		(e.isDir() || e.size == o.size && e.rdev == o.rdev)
}

// sameAttributes compares what chmod, chown, setfattr, chattr and touch change.
func (e *entry) sameAttributes(o *entry) bool {
	return e.sameOwnership(o) && e.mtime == o.mtime
}

// sameOwnership is sameAttributes without the time.
func (e *entry) sameOwnership(o *entry) bool {
	return e.mode == o.mode && e.uid == o.uid && e.gid == o.gid && e.xattrs == o.xattrs && e.flags == o.flags
}

// entryOf is the part of an entry that one stat call tells.
func entryOf(st *stat, clock stamp) entry {
	e := entry{
		mode: st.mode, uid: st.uid, gid: st.gid, size: st.size, rdev: st.rdev,
		mtime: st.mtime, ctime: st.ctime, btime: st.btime, ino: st.ino,
	}
	if e.isDir() {
		e.size = 0
	}
	e.racy = racy(st.ctime, clock)
	return e
}

// Two ticks of the coarsest clock that Linux is built with (HZ=100), and two
// of a filesystem that keeps whole seconds (ext4 with 128-byte inodes).
const (
	tick       = 20 * time.Millisecond
	coarseTick = 2 * time.Second
)

// racy says that a change made after clock could leave ctime as it is: the
// kernel stamps inodes with the time of the last tick, so two changes within
// one tick look alike (git's technical/racy-git; since Linux 6.13 most local
// filesystems stamp finer once somebody has looked).
func racy(ctime, clock stamp) bool {
	slack := tick
	if ctime.nsec == 0 {
		slack = coarseTick
	}
	return !ctime.add(slack).before(clock)
}
