package overlay

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// file carries what is no directory: into the file that is there if it is the same,
// for somebody may have that open; else a new one takes its place.
func (g *goBack) file(at *os.File, name string, s backStep, goal *entry) error {
	if shell, err := xattr(goal.f, private+"metacopy"); err != nil || shell != nil {
		return errors.Join(err, errElsewhere)
	}
	e, err := now(at, name)
	if err != nil {
		return err
	}
	defer e.close()
	if e != nil && fileType(e) == fileType(goal) {
		if same, err := sameContent(e, goal); err != nil || same {
			if goal.st.Nlink > 1 {
				g.r.links[inode{goal.st.Dev, goal.st.Ino}] = s.Path
			}
			return errors.Join(err, g.dress(at, name, goal))
		}
		if s.File && s.Seen.Same && fileType(goal) == snapshot.TypeFile {
			return errors.Join(g.into(at, name, s, goal), g.dress(at, name, goal))
		}
	}
	tmp := temp(name)
	if err := errors.Join(unlink(at, tmp), g.r.create(at, goal, tmp, "")); err != nil {
		return errors.Join(err, unlink(at, tmp))
	}
	if e != nil {
		err = g.remove(at, name, s)
	}
	if err == nil {
		err = unix.Renameat2(int(at.Fd()), tmp, int(at.Fd()), name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return errors.Join(err, unlink(at, tmp))
	}
	crash.Point("overlay.back.made")
	if goal.st.Nlink > 1 {
		g.r.links[inode{goal.st.Dev, goal.st.Ino}] = s.Path
	}
	return nil
}

// into brings a file to what the new view has of it: what was appended there is
// appended here, whatever others have appended since; what was written over is
// written over if nobody has written here.
func (g *goBack) into(at *os.File, name string, s backStep, goal *entry) error {
	from, err := goal.read()
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(at.Fd()), name, unix.O_RDWR|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	to := os.NewFile(uintptr(fd), name)
	defer to.Close() //nolint:errcheck // a sync follows
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	size, more := s.Seen.Size, goal.st.Size-s.Seen.Size
	appended := s.Seen.Whole && more >= 0 && st.Size >= size
	if appended {
		if appended, err = sameFiles(from, to, size); err != nil {
			return err
		}
	}
	switch {
	case appended && g.again && g.appendedBefore(from, to, size, more):
		return nil
	case appended:
		crash.Point("overlay.back.append")
		err = appendParts(from, to, size, goal.st.Size)
		crash.Point("overlay.back.appended")
		return err
	case g.note.Writing == s.Path, s.Seen.Sure && st.Size == size && st.Mtim == s.Seen.Mtime:
		return g.over(from, to, s, goal.st.Size)
	}
	return errChanged
}

// appendedBefore tells, where who was cut off may have done it, whether more bytes
// from size on are the last that are there, or the next.
func (g *goBack) appendedBefore(from, to *os.File, size, more int64) bool {
	fi, err := to.Stat()
	if err != nil || fi.Size() < size+more {
		return false
	}
	for _, at := range []int64{size, fi.Size() - more} {
		same, err := sameSections(io.NewSectionReader(from, size, more), io.NewSectionReader(to, at, more))
		if err == nil && same {
			return true
		}
	}
	return false
}

// over writes a file over in its place, and notes that it does. Where there is no room
// for it nothing is changed.
func (g *goBack) over(from, to *os.File, s backStep, size int64) error {
	var was unix.Stat_t
	if err := unix.Fstat(int(to.Fd()), &was); err != nil {
		return err
	}
	err := reserve(from, to, size)
	if err == nil {
		g.note.Writing = s.Path
		err = g.save()
	}
	if err != nil {
		g.note.Writing = ""
		return errors.Join(err, giveBack(to, &was))
	}
	w, err := openAt(unix.AT_FDCWD, fdName(to), unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // a sync follows
	err = parts(from, 0, size, func(at, end int64, hole bool) error {
		if hole && unix.Fallocate(int(w.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, end-at) == nil {
			return nil
		}
		_, err := io.Copy(io.NewOffsetWriter(w, at), io.NewSectionReader(from, at, end-at))
		return err
	})
	crash.Point("overlay.back.over")
	if err == nil {
		err = w.Truncate(size)
	}
	g.note.Writing = ""
	return errors.Join(err, g.save())
}

func sameSections(a, b io.Reader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(a, x)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return false, err
		}
		m, e := io.ReadFull(b, y[:n])
		if e != nil && n > 0 || !bytes.Equal(x[:n], y[:m]) {
			return false, e
		}
		if err != nil { // a's end
			return true, nil
		}
	}
}
