package overlay

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

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
	dir      *os.File
	pending  sync.WaitGroup // files that are being copied into it
}

func (p *spot) close() {
	p.pending.Wait()
	if p.dir != nil {
		p.dir.Close() //nolint:errcheck // nothing was written through it
	}
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
	if p.dir != nil {
		return nil
	}
	at, name := unix.AT_FDCWD, p.path()
	if p.parent != nil {
		if err := p.parent.make(); err != nil {
			return err
		}
		at, name = int(p.parent.dir.Fd()), p.name
	} else if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	p.c.changed = true
	if err := unix.Mkdirat(at, name, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	var err error
	if p.dir, err = openAt(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW); err != nil {
		return err
	}
	if w := p.c.d.watching.Load(); w != nil {
		w.spare(p.dir)
	}
	return nil
}

// finish gives the directory its attributes, last of all its times, once all
// that belongs in it is there.
func (p *spot) finish() error {
	if p.dir == nil {
		return nil
	}
	p.pending.Wait()
	if err := errors.Join(copyAttributes(p.x.f, p.dir), p.c.keepFlags(p.x, p.dir)); err != nil {
		return err
	}
	// readdir must look for the numbers of copied-up inodes (overlayfs.rst).
	if err := setPrivateOf(p.dir, "impure", "y"); err != nil {
		return err
	}
	switch {
	case p.redirect != "":
		return setPrivateOf(p.dir, "redirect", p.c.prefix()+"/"+p.redirect)
	case !p.merged && (p.parent == nil || p.parent.merged):
		return setPrivateOf(p.dir, "opaque", "y")
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
	if err := unix.Mknodat(int(p.dir.Fd()), name, unix.S_IFCHR, 0); err != nil {
		return &fs.PathError{Op: "mknod", Path: name, Err: err}
	}
	return nil
}

// file copies what is no directory, or links it to a copy of the same inode. One that
// has no other name may be lent: it is copied, and closed, beside what comes next.
func (p *spot) file(e *entry, name string) (lent bool, err error) {
	if fileType(e) != snapshot.TypeFile || e.st.Nlink > 1 {
		return false, p.copy(e, name)
	}
	if err := p.make(); err != nil {
		return false, err
	}
	p.pending.Add(1)
	p.c.beside.Go(func() error {
		defer p.pending.Done()
		defer e.close()
		return p.c.whole(e, p.dir, name)
	})
	return true, nil
}

// copy is file, at once.
func (p *spot) copy(e *entry, name string) error {
	return p.once(e, name, p.c.copies, func() error {
		if fileType(e) != snapshot.TypeFile {
			return makeSpecialIn(p.dir, e, name)
		}
		return p.c.whole(e, p.dir, name)
	})
}

// once copies a file for the first of its names and links the others. A copy of
// the attributes alone can stand only where the layers have the bytes.
func (p *spot) once(e *entry, name string, made map[inode]string, copy func() error) error {
	if err := p.make(); err != nil {
		return err
	}
	if e.st.Nlink > 1 {
		id := inode{e.st.Dev, e.st.Ino}
		if first, ok := made[id]; ok && unix.Linkat(unix.AT_FDCWD, first, int(p.dir.Fd()), name, 0) == nil {
			return nil
		}
		made[id] = filepath.Join(p.path(), name)
	}
	return copy()
}

// shell keeps the attributes of a file whose bytes the layers have at the same
// path.
func (p *spot) shell(e *entry, name string) error {
	if !p.merged {
		return p.copy(e, name)
	}
	return p.once(e, name, p.c.shells, func() error {
		to, err := createAt(p.dir, name, 0o600)
		if err != nil {
			return err
		}
		if err = to.Truncate(e.st.Size); err == nil {
			err = errors.Join(setPrivateOf(to, "metacopy", ""), copyAttributes(e.f, to), p.c.keepFlags(e, to))
		}
		return errors.Join(err, to.Close())
	})
}

// copyTries is how often a file that is written to meanwhile is copied: after
// that it is kept as it was read last, and differs at the next capture.
const copyTries = 3

// whole copies a regular file. Its attributes are read after its bytes, so that
// the time of a copy is never older than what is in it.
func (c *capture) whole(e *entry, at *os.File, name string) error {
	if err := c.settle(e); err != nil {
		return err
	}
	from, err := e.read()
	if err != nil {
		return err
	}
	var before, after unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &before); err != nil {
		return &fs.PathError{Op: "fstat", Path: name, Err: err}
	}
	to, err := createAt(at, name, e.st.Mode&0o777)
	if err != nil {
		return err
	}
	for try := 1; err == nil; try++ {
		err = errors.Join(copyBytes(c.ctx, from, to), unix.Fstat(int(from.Fd()), &after))
		if err != nil || before.Ctim == after.Ctim && before.Size == after.Size || try == copyTries {
			break
		}
		before, err = after, to.Truncate(0)
	}
	if err == nil && e.data == nil {
		err = copyAttributesOf(from, &after, to)
	} else if err == nil {
		err = copyAttributes(e.f, to)
	}
	if err == nil {
		err = c.keepFlags(e, to)
	}
	return errors.Join(err, to.Close())
}

// settle writes a file's pages to disk if anybody has it open for writing, who
// may have it mapped. Only the first write through a mapping to a clean page
// moves the times: one to a page that is dirty already would not be seen at the
// next look. A lease tells whether there is a writer (fcntl(2), F_SETLEASE). Once
// before the first reading is enough: a later write moves the times from those that
// were noted before (see name).
func (c *capture) settle(e *entry) error {
	if e.settled || e.layer != 0 || e.meta || fileType(e) != snapshot.TypeFile {
		return nil
	}
	e.settled = true
	f, err := e.read()
	if err != nil {
		return err
	}
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
