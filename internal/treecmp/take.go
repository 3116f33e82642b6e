package treecmp

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

type inode struct{ dev, ino uint64 }

// Take takes a picture of the directory dir. It follows no link, crosses into
// mounts below dir, and fails when the tree changes meanwhile or contradicts
// itself: a name listed twice, listed but not there, or listed as another type
// than it has.
func Take(dir string) (Picture, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", dir, err)
	}
	c := camera{Picture{}, map[inode][]string{}, make([]byte, scratchSize), newSummer()}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close() //nolint:errcheck // only read
	if err := c.root(f); err != nil {
		return nil, fmt.Errorf("picture of %q: %w", dir, err)
	}
	c.pic.group(c.inodes)
	return c.pic, nil
}

type camera struct {
	pic     Picture
	inodes  map[inode][]string
	scratch []byte // for whoever is reading; nobody keeps what is in it
	summer  summer
}

// scratchSize holds any list and any value of extended attributes: XATTR_LIST_MAX
// and XATTR_SIZE_MAX, xattr(7).
const scratchSize = 64 << 10

func (c camera) root(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	e := entryOf(&st)
	var err error
	if e.Xattrs, err = c.xattrs(fmt.Sprintf("/proc/self/fd/%d/.", f.Fd())); err != nil {
		return err
	}
	e.Flags = flagsOf(int(f.Fd()))
	c.pic["."] = e
	return c.dir(f, "")
}

func (c camera) dir(f *os.File, path string) error {
	names, err := list(int(f.Fd()), c.scratch)
	if err != nil {
		return fmt.Errorf("list %q: %w", path, err)
	}
	for _, n := range names {
		if err := c.name(int(f.Fd()), n, path+n.name); err != nil {
			return fmt.Errorf("%q: %w", path+n.name, err)
		}
	}
	return nil
}

func (c camera) name(parent int, n listed, path string) error {
	if _, twice := c.pic[path]; twice {
		return fmt.Errorf("listed twice")
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, n.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("listed, but stat: %w", err)
	}
	e := entryOf(&st)
	if n.kind != unknown && n.kind != e.Type {
		return fmt.Errorf("listed as type %c, but stat says %c", n.kind, e.Type)
	}
	var err error
	if e.Xattrs, err = c.xattrs(fmt.Sprintf("/proc/self/fd/%d/%s", parent, n.name)); err != nil {
		return err
	}
	if e.Type != 'd' {
		id := inode{st.Dev, st.Ino}
		c.inodes[id] = append(c.inodes[id], path)
	}
	return c.inside(parent, n.name, path, e)
}

// inside adds what stat does not tell, and e itself to the picture.
func (c camera) inside(parent int, name, path string, e Entry) error {
	if e.Type == 'l' {
		target, err := readlinkat(parent, name)
		e.Target = target
		c.pic[path] = e
		return err
	}
	if e.Type != 'f' && e.Type != 'd' {
		c.pic[path] = e
		return nil
	}
	fd, err := unix.Openat(parent, name,
		unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NOATIME|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close() //nolint:errcheck // only read
	e.Flags = flagsOf(fd)
	if e.Type == 'd' {
		c.pic[path] = e
		return c.dir(f, path+"/")
	}
	e.Sum, e.Holes, err = c.summer.file(f, e.Size)
	c.pic[path] = e
	return err
}

func entryOf(st *unix.Stat_t) Entry {
	e := Entry{
		Type: typeOf(st.Mode), Mode: st.Mode & 0o7777,
		UID: st.Uid, GID: st.Gid, Mtime: st.Mtim.Nano(),
	}
	if e.Type != 'd' {
		e.Size, e.Nlink = st.Size, uint64(st.Nlink)
	}
	if e.Type == 'c' || e.Type == 'b' {
		e.Rdev = st.Rdev
	}
	return e
}

func typeOf(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 'f'
	case unix.S_IFDIR:
		return 'd'
	case unix.S_IFLNK:
		return 'l'
	case unix.S_IFIFO:
		return 'p'
	case unix.S_IFSOCK:
		return 's'
	case unix.S_IFCHR:
		return 'c'
	case unix.S_IFBLK:
		return 'b'
	}
	return unknown
}

func readlinkat(parent int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(parent, name, b)
	if err != nil {
		return "", fmt.Errorf("read link: %w", err)
	}
	return string(b[:n]), nil
}

// xattrs reads all extended attributes of path itself, not of what it links to.
func (c camera) xattrs(path string) (map[string]string, error) {
	n, err := unix.Llistxattr(path, c.scratch)
	if err == unix.EOPNOTSUPP || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list xattrs: %w", err)
	}
	attrs := map[string]string{}
	names := string(c.scratch[:n])
	for name := range strings.SplitSeq(strings.TrimSuffix(names, "\x00"), "\x00") {
		n, err := unix.Lgetxattr(path, name, c.scratch)
		if err != nil {
			return nil, fmt.Errorf("xattr %s: %w", name, err)
		}
		attrs[name] = string(c.scratch[:n])
	}
	return attrs, nil
}

// shownFlags are the inode flags that a picture keeps: those that a user sets
// (S i a d A in chattr(1); linux/fs.h). Others (extents, indexed directory) are
// the file system's own affair.
const shownFlags = 0x8 | 0x10 | 0x20 | 0x40 | 0x80

// flagsOf reads the inode flags of an open file, 0 where there are none.
func flagsOf(fd int) uint32 {
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return 0
	}
	return flags & shownFlags
}
