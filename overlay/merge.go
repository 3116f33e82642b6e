package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// A merge builds one directory that stands for a run of sealed layers: stacked
// in their place it shows the same tree. Files are hard links to the layers'
// own, which never change again; what overlayfs notes of layers below (removals,
// opaque directories, redirects, metacopy) is worked out anew for the place.
type merge struct {
	ctx    context.Context
	below  *merged // the view without the run
	split  int     // roots of the view that belong to the run
	prefix string  // of redirects: the tree's place below the overlay's root
	white  string  // a whiteout to link to, once there is one
	copies map[inode]string
	size   runSize
	by     string // the way to the layers, if not the driver's

	// foreign: the layers below are not those that the run was made on. What a
	// file says of them is then believed only where it holds for these too.
	foreign bool
	base    int // where the view has base, whose files must not be linked to: they are not sealed

	// settled: nothing of the layers below may be needed under another name. What
	// the run has moved is made whole, with links to what is there.
	settled bool
	apart   bool                // base is on another filesystem: settled, its bytes are not needed at all
	also    map[string][]string // by directory, names that the run has not: see together
}

// count adds what was made and is not a link.
func (m *merge) count(f *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	m.size.used.Bytes += st.Blocks * 512
	m.size.used.Inodes++
	return nil
}

// An inode is a file of the run that had to be copied: its other names become
// links to the copy.
type inode struct{ dev, ino uint64 }

// build makes the run's tree in dir, whose parent exists.
func (m *merge) build(view *merged, dir string) error {
	a, err := view.root()
	if err != nil {
		return err
	}
	b, err := m.below.root()
	if err != nil {
		return err
	}
	return m.directory(a, b, dir, false)
}

// directory makes one directory with what the run has in it. b is what the
// layers below have for it, nil if nothing of theirs shows through; fresh tells
// that nothing shows through its parent either, so that it need not say so.
func (m *merge) directory(a, b *entry, dir string, fresh bool) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	limit := m.split
	if b == nil && m.settled || m.reachesBelow(a) && !m.stands(a) {
		limit = -1 // all of it is to be made
	}
	names, err := a.dir.names(limit)
	if err != nil {
		return err
	}
	for _, name := range m.also[dir] {
		names[name] = true
	}
	for name := range names {
		m.size.entries++
		if err := m.name(a, b, name, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	crash.Point("overlay.merging")
	return m.dress(a, b, dir, fresh)
}

// name makes one entry: what the view has for it, or a whiteout if the layers
// below have something that the run removed.
func (m *merge) name(a, b *entry, name, path string) error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	e, err := a.dir.lookup(name, true)
	if err != nil {
		return err
	}
	defer e.close()
	if e != nil && e.dir == nil {
		return m.file(e, path, b != nil && e.origin == join(a.dir.origin, name))
	}
	var under *entry
	moved := e != nil && m.stands(e) && (b == nil || e.dir.origin != join(a.dir.origin, name))
	switch {
	case moved && m.settled:
	case e != nil && m.stands(e):
		under, err = m.below.resolve(e.dir.origin, false)
	case e == nil && b != nil:
		under, err = b.dir.lookup(name, false)
	}
	if err != nil {
		return err
	}
	defer under.close()
	if e == nil {
		if under == nil {
			return nil
		}
		return m.whiteout(path)
	}
	if err := m.directory(e, onlyDir(under), path, b == nil); err != nil {
		return err
	}
	if moved && !m.settled {
		return setPrivate(path, "redirect", m.prefix+"/"+e.dir.origin)
	}
	return nil
}

// reachesBelow tells whether layers below the run have a part in a directory.
func (m *merge) reachesBelow(e *entry) bool {
	return e.dir.parts[len(e.dir.parts)-1].layer >= m.split
}

// stands tells whether a directory of the run can stand on what the layers below
// have where it was known: it does, unless these are foreign and have another
// directory there, or not all of its parts.
func (m *merge) stands(e *entry) bool {
	if !m.reachesBelow(e) || !m.foreign {
		return m.reachesBelow(e)
	}
	t, err := m.below.resolve(e.dir.origin, false)
	defer t.close()
	if err != nil || !isDir(t) {
		return false
	}
	mine, theirs := e.dir.parts, t.dir.parts
	for len(mine) > 0 && mine[0].layer < m.split {
		mine = mine[1:]
	}
	if len(theirs) < len(mine) {
		return false
	}
	theirs = theirs[len(theirs)-len(mine):]
	for i := range mine {
		if !sameInode(mine[i].f, theirs[i].f) {
			return false
		}
	}
	return true
}

func sameInode(a, b *os.File) bool {
	var s, t unix.Stat_t
	return unix.Fstat(int(a.Fd()), &s) == nil && unix.Fstat(int(b.Fd()), &t) == nil && s.Dev == t.Dev && s.Ino == t.Ino
}

// dress gives a merged directory its attributes, last of all its times.
func (m *merge) dress(a, b *entry, dir string, fresh bool) error {
	to, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer to.Close() //nolint:errcheck // nothing was written through it
	if err := errors.Join(copyAttributes(a.f, to), copyForbid(a.f, to), m.count(to)); err != nil {
		return err
	}
	// readdir must look for the numbers of copied-up inodes (overlayfs.rst).
	if err := setPrivate(dir, "impure", "y"); err != nil {
		return err
	}
	if b == nil && !fresh {
		return setPrivate(dir, "opaque", "y")
	}
	return nil
}

func setPrivate(path, name, value string) error {
	if err := unix.Lsetxattr(path, private+name, []byte(value), 0); err != nil {
		return &fs.PathError{Op: "setxattr " + name, Path: path, Err: err}
	}
	return nil
}

// setPrivateOf is setPrivate for an open file.
func setPrivateOf(f *os.File, name, value string) error {
	if err := unix.Fsetxattr(int(f.Fd()), private+name, []byte(value), 0); err != nil {
		return &fs.PathError{Op: "setxattr " + name, Path: f.Name(), Err: err}
	}
	return nil
}

// whiteout makes a removal. All in one merge are one inode, as far as the file
// system allows that many links.
func (m *merge) whiteout(path string) error {
	if m.white != "" && unix.Link(m.white, path) == nil {
		return nil
	}
	if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
		return &fs.PathError{Op: "mknod", Path: path, Err: err}
	}
	m.white = path
	m.size.used.Inodes++
	return nil
}

// file links to a file of the run, unless what it says of the layers below it
// would be wrong in this place: then a copy says it right. natural tells that
// they have its bytes at the same path.
func (m *merge) file(e *entry, path string, natural bool) error {
	switch {
	case e.data != nil && e.dataLayer < m.split: // its bytes lie in the run too
		return m.once(e, path, m.whole)
	case e.meta && m.foreign && !m.hasBytes(e), m.foreign && e.layer == m.base && fileType(e) == snapshot.TypeFile:
		return m.once(e, path, m.whole)
	case m.settled && e.meta && (!natural || m.apart || e.st.Nlink > 1):
		return m.once(e, path, m.full)
	case e.meta && !m.redirectFits(e, natural):
		return m.once(e, path, m.shell)
	}
	err := unix.Linkat(int(e.parent.Fd()), e.name, unix.AT_FDCWD, path, 0)
	if errors.Is(err, unix.EMLINK) || errors.Is(err, unix.EXDEV) { // base may be elsewhere
		if e.meta {
			return m.once(e, path, m.shell)
		}
		return m.once(e, path, m.whole)
	}
	if err != nil {
		return &fs.PathError{Op: "link", Path: path, Err: err}
	}
	return nil
}

// once copies a file for the first of its names and links the others.
func (m *merge) once(e *entry, path string, copy func(*entry, string) error) error {
	id := inode{e.st.Dev, e.st.Ino}
	if first, ok := m.copies[id]; ok && unix.Link(first, path) == nil {
		return nil
	}
	if m.copies == nil {
		m.copies = map[inode]string{}
	}
	m.copies[id] = path
	return copy(e, path)
}

// redirectFits tells whether a metacopy file, linked as it is, finds its bytes:
// it says where, or does not need to.
func (m *merge) redirectFits(e *entry, natural bool) bool {
	r, err := xattr(e.f, private+"redirect")
	if err != nil {
		return false
	}
	if len(r) == 0 {
		return natural
	}
	return string(r) == m.prefix+"/"+e.origin
}

// hasBytes tells whether the layers below have a metacopy file's bytes, the very
// same inode, where it was known on its own.
func (m *merge) hasBytes(e *entry) bool {
	t, err := m.below.resolve(e.origin, true)
	defer t.close()
	if err != nil || t == nil || t.dir != nil || e.data == nil {
		return false
	}
	return sameInode(t.bytes(), e.data)
}

// whole copies a file, bytes and attributes: a file that has no more to do with
// layers below.
func (m *merge) whole(e *entry, path string) error {
	if fileType(e) != snapshot.TypeFile {
		dir, err := openDir(filepath.Dir(path))
		if err != nil {
			return err
		}
		return errors.Join(target{dir, filepath.Base(path)}.replica(e), dir.Close())
	}
	from, err := e.read()
	if err != nil {
		return err
	}
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = copyBytes(m.ctx, from, to)
	if err == nil {
		err = errors.Join(copyAttributes(e.dressed(), to), copyForbid(e.dressed(), to), to.Sync(), m.count(to))
	}
	return errors.Join(err, to.Close())
}

// full makes a metacopy file whole: a link to the file below where that has the
// same attributes and no other name, else a copy.
func (m *merge) full(e *entry, path string) error {
	if e.data == nil {
		return fmt.Errorf("%q: its bytes are not in base", path)
	}
	bytes := &entry{f: e.data}
	if err := unix.Fstat(int(e.data.Fd()), &bytes.st); err != nil {
		return &fs.PathError{Op: "fstat", Path: path, Err: err}
	}
	if same, err := sameAttributes(e, bytes, true); err != nil {
		return err
	} else if same && bytes.st.Nlink == 1 && linkTo(e.data, path) == nil {
		return nil
	}
	return m.whole(e, path)
}

// linkTo links to an open file. A file that flags protect takes no links.
func linkTo(f *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, fdName(f), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

// shell makes a metacopy file anew, with another redirect.
func (m *merge) shell(e *entry, path string) error {
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	err = to.Truncate(e.st.Size)
	if err == nil {
		err = errors.Join(
			setPrivate(path, "metacopy", ""), setPrivate(path, "redirect", m.prefix+"/"+e.origin),
			m.keepOrigin(e, path), copyAttributes(e.f, to), copyForbid(e.f, to), m.count(to))
	}
	return errors.Join(err, to.Close())
}

// keepOrigin carries the attribute from which inode numbers are made.
func (m *merge) keepOrigin(e *entry, path string) error {
	o, err := xattr(e.f, private+"origin")
	if err != nil || o == nil {
		return err
	}
	return setPrivate(path, "origin", string(o))
}

// copyBytes copies a file with its holes, by reflink where the file system
// can (FICLONE), else inside the kernel.
func copyBytes(ctx context.Context, from, to *os.File) error {
	if unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: from.Name(), Err: err}
	}
	size := st.Size
	if size <= smallFile && st.Blocks*512 >= size { // no holes
		return copySmall(from, to)
	}
	if hole, err := from.Seek(0, unix.SEEK_HOLE); err != nil || hole < size {
		if err := to.Truncate(size); err != nil { // it may end in a hole
			return err
		}
	}
	return parts(from, 0, size, func(at, end int64, hole bool) error {
		for !hole && at < end {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := copyRange(from, to, at, min(end-at, 16<<20))
			if err != nil || n == 0 {
				return err
			}
			at += n
		}
		return nil
	})
}

// copyRange copies n bytes at the same place, or as many as there are: where the
// kernel does not, between filesystems for one (copy_file_range(2), EXDEV), by a read
// and a write.
func copyRange(from, to *os.File, at, n int64) (int64, error) {
	in, out := at, at
	done, err := unix.CopyFileRange(int(from.Fd()), &in, int(to.Fd()), &out, int(n), 0)
	switch {
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return io.Copy(io.NewOffsetWriter(to, at), io.NewSectionReader(from, at, n))
	case err != nil:
		return 0, &fs.PathError{Op: "copy_file_range", Path: to.Name(), Err: err}
	}
	return int64(done), nil
}

// smallFile is up to where a read and a write cost less than what finds holes and
// copies inside the kernel.
const smallFile = 64 << 10

var smallBuffers = sync.Pool{New: func() any { return new([smallFile]byte) }}

// copySmall copies a file from its beginning on, to its end or as far as a buffer goes.
func copySmall(from, to *os.File) error {
	buf := smallBuffers.Get().(*[smallFile]byte) //nolint:errcheck // it holds nothing else
	defer smallBuffers.Put(buf)
	n, err := from.ReadAt(buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = to.WriteAt(buf[:n], 0)
	return err
}
