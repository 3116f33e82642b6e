package overlay

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// compareFiles tells how two entries of one type, not directories, differ; ""
// if they do not.
func compareFiles(x, y *entry) (snapshot.ChangeKind, error) {
	same, err := sameContent(x, y)
	if err != nil {
		return "", err
	}
	if !same {
		return snapshot.ChangeModified, nil
	}
	same, err = sameAttributes(x, y, true)
	if err != nil || same {
		return "", err
	}
	return snapshot.ChangeMetadata, nil
}

// sameAttributes compares mode, owner, extended attributes and, if asked to,
// the time of modification. A directory's time is left out: it changes with
// every entry.
func sameAttributes(x, y *entry, times bool) (bool, error) {
	if x.st.Mode != y.st.Mode || x.st.Uid != y.st.Uid || x.st.Gid != y.st.Gid {
		return false, nil
	}
	if times && x.st.Mtim != y.st.Mtim {
		return false, nil
	}
	a, err := xattrs(x.f)
	if err != nil {
		return false, err
	}
	b, err := xattrs(y.f)
	return sameXattrs(a, b), err
}

func sameContent(x, y *entry) (bool, error) {
	switch fileType(x) {
	case snapshot.TypeFile:
		return sameBytes(x, y)
	case snapshot.TypeSymlink:
		a, err := readlink(x.f)
		if err != nil {
			return false, err
		}
		b, err := readlink(y.f)
		return a == b, err
	case snapshot.TypeChar, snapshot.TypeBlock:
		return x.st.Rdev == y.st.Rdev, nil
	}
	return true, nil
}

func readlink(f *os.File) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", buf)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: f.Name(), Err: err}
	}
	return string(buf[:n]), nil
}

// sameBytes reads two files of one length side by side and stops at the first
// difference. What is a hole in both is not read.
func sameBytes(x, y *entry) (bool, error) {
	if sameInode(x.bytes(), y.bytes()) {
		return true, nil
	}
	if x.st.Size != y.st.Size {
		return false, nil
	}
	a, err := x.read()
	if err != nil {
		return false, err
	}
	b, err := y.read()
	if err != nil {
		return false, err
	}
	return sameFiles(a, b, x.st.Size)
}

func sameFiles(a, b *os.File, size int64) (bool, error) {
	const first = 4 << 10 // most files that differ do so there, and this much is on the stack
	var p, q [first]byte
	n := int(min(size, first))
	if err := errors.Join(readAll(a, p[:n]), readAll(b, q[:n])); err != nil || p != q || size <= first {
		return p == q, err
	}
	buf := make([]byte, 2*min(size-first, 128<<10)) // clearing more than is read would cost more than reading
	for at := int64(first); at < size; {
		at = min(nextData(a, at, size), nextData(b, at, size))
		n := int(min(int64(len(buf)/2), size-at))
		if n == 0 {
			break
		}
		p, q := buf[:n], buf[len(buf)/2:][:n]
		if _, err := a.ReadAt(p, at); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if _, err := b.ReadAt(q, at); err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		if !bytes.Equal(p, q) {
			return false, nil
		}
		at += int64(n)
	}
	return true, nil
}

// readAll reads the beginning of a file, as far as there is one.
func readAll(f *os.File, b []byte) error {
	for at := 0; at < len(b); {
		n, err := unix.Pread(int(f.Fd()), b[at:], int64(at))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "pread", Path: f.Name(), Err: err}
		}
		if n == 0 {
			break
		}
		at += n
	}
	return nil
}

// nextData skips a hole (lseek(2), SEEK_DATA); a file system that does not
// know holes says that all is data.
func nextData(f *os.File, at, size int64) int64 {
	n, err := f.Seek(at, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return size
	}
	if err != nil {
		return at
	}
	return n
}

// parts calls f with each stretch of a file, of data or a hole.
func parts(from *os.File, at, size int64, f func(at, end int64, hole bool) error) error {
	for at < size {
		end := min(nextData(from, at, size), size)
		hole := end > at
		if !hole {
			var err error
			if end, err = from.Seek(at, unix.SEEK_HOLE); err != nil || end > size {
				end = size
			}
		}
		if err := f(at, end, hole); err != nil {
			return err
		}
		at = end
	}
	return nil
}
