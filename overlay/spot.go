package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A spot is a directory of the layer that is being made, made when something
// must be in it.
type spot struct {
	c        *capture
	parent   *spot // nil: the tree's root
	name     string
	x        *entry // what is shown there: it decides on attributes
	merged   bool   // the layers have a part in it
	redirect string // where they have it, if elsewhere
	done     bool
}

func (p *spot) path() string {
	if p.parent != nil {
		return filepath.Join(p.parent.path(), p.name)
	}
	if p.c.d.name == "" {
		return filepath.Join(p.c.aside, "u")
	}
	return filepath.Join(p.c.aside, "s", p.c.d.name)
}

// make makes the directory and those above it.
func (p *spot) make() error {
	if p.c.into == "" {
		return errDiffers
	}
	if p.done {
		return nil
	}
	if p.parent != nil {
		if err := p.parent.make(); err != nil {
			return err
		}
	} else if err := os.MkdirAll(filepath.Dir(p.path()), 0o755); err != nil {
		return err
	}
	p.c.changed, p.done = true, true
	return os.Mkdir(p.path(), 0o700)
}

// finish gives the directory its attributes, last of all its times, once all
// that belongs in it is there.
func (p *spot) finish() error {
	if !p.done {
		return nil
	}
	to, err := os.Open(p.path())
	if err != nil {
		return err
	}
	defer to.Close() //nolint:errcheck // nothing was written through it
	if err := copyAttributes(p.x.f, to); err != nil {
		return err
	}
	// readdir must look for the numbers of copied-up inodes (overlayfs.rst).
	if err := setPrivate(p.path(), "impure", "y"); err != nil {
		return err
	}
	switch {
	case p.redirect != "":
		return setPrivate(p.path(), "redirect", p.c.prefix()+"/"+p.redirect)
	case !p.merged && (p.parent == nil || p.parent.merged):
		return setPrivate(p.path(), "opaque", "y")
	}
	return nil
}

// prefix is the tree's place below the overlay's root, for redirects.
func (c *capture) prefix() string {
	if c.d.name == "" {
		return ""
	}
	return "/" + c.d.name
}

// whiteout notes a removal, unless nothing of the layers shows through anyway.
func (p *spot) whiteout(name string) error {
	if !p.merged {
		return nil
	}
	if err := p.make(); err != nil {
		return err
	}
	path := filepath.Join(p.path(), name)
	if err := unix.Mknod(path, unix.S_IFCHR, 0); err != nil {
		return &fs.PathError{Op: "mknod", Path: path, Err: err}
	}
	return nil
}

// file copies what is no directory, or links it to a copy of the same inode.
func (p *spot) file(e *entry, name string) error {
	return p.once(e, name, p.c.copies, func(path string) error {
		if fileType(e) != snapshot.TypeFile {
			return makeSpecial(e, path)
		}
		return p.c.whole(e, path)
	})
}

// once copies a file for the first of its names and links the others. A copy of
// the attributes alone can stand only where the layers have the bytes.
func (p *spot) once(e *entry, name string, made map[inode]string, copy func(path string) error) error {
	if err := p.make(); err != nil {
		return err
	}
	path, id := filepath.Join(p.path(), name), inode{e.st.Dev, e.st.Ino}
	if e.st.Nlink > 1 {
		if first, ok := made[id]; ok && unix.Link(first, path) == nil {
			return nil
		}
		made[id] = path
	}
	return copy(path)
}

// shell keeps the attributes of a file whose bytes the layers have at the same
// path.
func (p *spot) shell(e *entry, name string) error {
	if !p.merged {
		return p.file(e, name)
	}
	return p.once(e, name, p.c.shells, func(path string) error {
		to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err = to.Truncate(e.st.Size); err == nil {
			err = errors.Join(setPrivate(path, "metacopy", ""), copyAttributes(e.f, to))
		}
		return errors.Join(err, to.Close())
	})
}

// copyTries is how often a file that is written to meanwhile is copied: after
// that it is kept as it was read last, and differs at the next capture.
const copyTries = 3

// whole copies a regular file. Its attributes are read after its bytes, so that
// the time of a copy is never older than what is in it.
func (c *capture) whole(e *entry, path string) error {
	if err := c.settle(e); err != nil {
		return err
	}
	from, err := os.Open(fdName(e.bytes()))
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // read only
	to, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	for try := 1; err == nil; try++ {
		before, e1 := statxAt(int(from.Fd()), "")
		err = errors.Join(e1, c.copyBytes(from, to))
		after, e2 := statxAt(int(from.Fd()), "")
		if err = errors.Join(err, e2); before.Ctime == after.Ctime && before.Size == after.Size || try == copyTries {
			break
		}
		err = errors.Join(err, to.Truncate(0))
	}
	if err == nil {
		err = copyAttributes(e.f, to)
	}
	return errors.Join(err, to.Close())
}

// settle writes a file's pages to disk if anybody has it open for writing, who
// may have it mapped. Only the first write through a mapping to a clean page
// moves the times: one to a page that is dirty already would not be seen at the
// next look. A lease tells whether there is a writer (fcntl(2), F_SETLEASE).
func (c *capture) settle(e *entry) error {
	if e.layer != 0 || e.meta || fileType(e) != snapshot.TypeFile {
		return nil
	}
	f, err := os.Open(fdName(e.f))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
		return err
	}
	const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	if err := unix.SyncFileRange(int(f.Fd()), 0, 0, all); errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) {
		return &fs.PathError{Op: "sync_file_range", Path: f.Name(), Err: err}
	}
	return nil
}

func (c *capture) copyBytes(from, to *os.File) error { return copyBytes(c.ctx, from, to) }

// makeSpecial makes a symbolic link, fifo, socket or device like e.
func makeSpecial(e *entry, path string) error {
	if fileType(e) == snapshot.TypeSymlink {
		target, err := readlink(e.f)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, path); err != nil {
			return err
		}
	} else if err := unix.Mknod(path, e.st.Mode, int(e.st.Rdev)); err != nil {
		return &fs.PathError{Op: "mknod", Path: path, Err: err}
	}
	return dressSpecial(e, path)
}

// dressSpecial gives path, which is not followed, the attributes of e.
func dressSpecial(e *entry, path string) error {
	if err := os.Lchown(path, int(e.st.Uid), int(e.st.Gid)); err != nil {
		return err
	}
	if fileType(e) != snapshot.TypeSymlink {
		if err := unix.Fchmodat(unix.AT_FDCWD, path, e.st.Mode&0o7777, 0); err != nil {
			return &fs.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	attrs, err := xattrs(e.f)
	if err != nil {
		return err
	}
	for name, value := range attrs {
		if err := unix.Lsetxattr(path, name, value, 0); err != nil {
			return &fs.PathError{Op: "setxattr " + name, Path: path, Err: err}
		}
	}
	times := []unix.Timespec{{Sec: e.st.Atim.Sec, Nsec: e.st.Atim.Nsec}, {Sec: e.st.Mtim.Sec, Nsec: e.st.Mtim.Nsec}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times of %q: %w", path, err)
	}
	return nil
}
