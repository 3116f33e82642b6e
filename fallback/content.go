package fallback

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
)

// packer puts the bytes of files into the store for one worker. It is done
// when flush has returned without an error.
type packer struct {
	s    *store
	max  int64         // the store may take so much more
	tell func(n int64) // progress
	f    *os.File      // the pack that small files go to
	num  uint64
	off  int64  // where buf begins in f
	buf  []byte // not yet written
}

const packBuffer = 1 << 20

// put stores the first st.size bytes of src. A file that shrinks meanwhile is
// stored as far as it goes, and got says how far; the caller compares times.
func (p *packer) put(src int, st *stat) (o object, got int64, err error) {
	if st.size == 0 {
		return object{}, 0, nil
	}
	if need := p.s.made() + min(st.size, st.blocks*512); need > p.max {
		return o, 0, tooMuch(need, p.max)
	}
	sparse := st.blocks*512 < st.size && nextHole(src, 0, st.size) < st.size
	switch {
	case sparse && nextData(src, 0, st.size) == st.size:
		return object{}, st.size, nil
	case sparse || st.size > smallFile:
		return p.putWhole(src, st.size)
	}
	return p.putSmall(src, st.size)
}

func (p *packer) putSmall(src int, size int64) (o object, got int64, err error) {
	if p.f == nil || p.off+int64(len(p.buf)) > packSize {
		if err := p.flush(); err != nil {
			return o, 0, err
		}
		if p.f, p.num, err = p.s.create(); err != nil {
			return o, 0, err
		}
		p.off = 0
	}
	if len(p.buf)+int(size) > packBuffer {
		if err := p.write(); err != nil {
			return o, 0, err
		}
	}
	at := len(p.buf)
	p.buf = append(p.buf, make([]byte, size)...)
	n, err := readFull(src, p.buf[at:], 0)
	p.buf = p.buf[:at+n]
	p.s.count(int64(n))
	p.tell(int64(n))
	return object{p.num, p.off + int64(at)}, int64(n), err
}

func (p *packer) write() error {
	n, err := p.f.Write(p.buf)
	p.off += int64(n)
	p.buf = p.buf[:0]
	return err
}

// flush writes what is buffered and closes the pack.
func (p *packer) flush() error {
	if p.f == nil {
		return nil
	}
	err := errors.Join(p.write(), p.f.Close())
	p.f = nil
	return err
}

func (p *packer) putWhole(src int, size int64) (o object, got int64, err error) {
	f, num, err := p.s.create()
	if err != nil {
		return o, 0, err
	}
	err = p.s.clone(int(f.Fd()), src, size, p.tell)
	st, e := statAt(int(f.Fd()), "", f.Name())
	p.s.count(min(size, st.blocks*512))
	return object{num, whole}, st.size, errors.Join(err, e, f.Close())
}

// clone makes dst, an empty file, the first size bytes of src: by sharing the
// blocks if the filesystem can (FICLONE, ioctl_ficlone(2): btrfs, xfs), else by
// copying what is not a hole.
func (s *store) clone(dst, src int, size int64, tell func(int64)) error {
	if !s.hooks.noClone {
		if err := unix.IoctlFileClone(dst, src); err == nil {
			tell(size)
			return truncate(dst, size) // it may have grown
		}
	}
	for pos := int64(0); pos < size; {
		start := nextData(src, pos, size)
		end := nextHole(src, start, size)
		if err := s.copyRange(dst, src, start, start, end-start, tell); err != nil {
			return err
		}
		crash.Point("fallback.clone")
		pos = end
	}
	return truncate(dst, size)
}

func truncate(fd int, size int64) error {
	if err := unix.Ftruncate(fd, size); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	return nil
}

// nextData and nextHole are lseek(2) SEEK_DATA and SEEK_HOLE within size. A
// filesystem that knows no holes has data everywhere.
func nextData(fd int, pos, size int64) int64 {
	n, err := unix.Seek(fd, pos, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return pos
	}
	return min(n, size)
}

func nextHole(fd int, pos, size int64) int64 {
	n, err := unix.Seek(fd, pos, unix.SEEK_HOLE)
	if err != nil {
		return size
	}
	return min(n, size)
}

// copyRange copies n bytes inside the kernel where it can (copy_file_range(2)
// crosses filesystems since Linux 5.19), else through memory. It stops early,
// without an error, at the end of src.
func (s *store) copyRange(dst, src int, to, from, n int64, tell func(int64)) error {
	for n > 0 && !s.hooks.noCopy {
		done, err := unix.CopyFileRange(src, &from, dst, &to, int(min(n, 16<<20)), 0)
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) {
			return fmt.Errorf("copy_file_range: %w", err)
		}
		if err != nil || done == 0 {
			break // not here, or the end of the file: read tells
		}
		n -= int64(done)
		tell(int64(done))
	}
	buf := make([]byte, min(n, 256<<10))
	for n > 0 {
		got, err := readFull(src, buf[:min(n, int64(len(buf)))], from)
		if err != nil || got == 0 {
			return err
		}
		if err := writeFull(dst, buf[:got], to); err != nil {
			return err
		}
		from, to, n = from+int64(got), to+int64(got), n-int64(got)
		tell(int64(got))
	}
	return nil
}

// readFull fills b from pos on; fewer bytes mean the end of the file.
func readFull(fd int, b []byte, pos int64) (int, error) {
	n := 0
	for n < len(b) {
		m, err := unix.Pread(fd, b[n:], pos+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, fmt.Errorf("pread: %w", err)
		case m == 0:
			return n, nil
		default:
			n += m
		}
	}
	return n, nil
}

func writeFull(fd int, b []byte, pos int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, pos)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("pwrite: %w", err)
		}
		b, pos = b[max(n, 0):], pos+int64(max(n, 0))
	}
	return nil
}

// get writes the object of a file of that size into dst, an empty file.
func (s *store) get(o object, size int64, dst int, tell func(int64)) error {
	if o == (object{}) {
		return truncate(dst, size)
	}
	return s.read(o, func(f *os.File) error {
		if o.alone() {
			return s.clone(dst, int(f.Fd()), size, tell)
		}
		// One read and one write: copy_file_range is slower for so little.
		b := make([]byte, size)
		n, err := readFull(int(f.Fd()), b, o.off)
		if err == nil && n < len(b) {
			err = io.ErrUnexpectedEOF
		}
		tell(int64(n))
		return errors.Join(err, writeFull(dst, b[:n], 0))
	})
}

// matches compares an object of that size with the bytes of a file.
func (s *store) matches(o object, size int64, fd int) (same bool, err error) {
	if o == (object{}) {
		return nextData(fd, 0, size) == size || allZero(fd, size), nil
	}
	if there, err := s.has(o); err != nil || !there {
		return false, err
	}
	err = s.read(o, func(f *os.File) error {
		same, err = sameBytes(int(f.Fd()), max(o.off, 0), fd, 0, size)
		return err
	})
	return same, err
}

func allZero(fd int, size int64) bool {
	b := make([]byte, 128<<10)
	for pos := nextData(fd, 0, size); pos < size; pos = nextData(fd, pos, size) {
		n, err := readFull(fd, b[:min(size-pos, int64(len(b)))], pos)
		if err != nil || n == 0 || bytes.Count(b[:n], []byte{0}) != n {
			return false
		}
		pos += int64(n)
	}
	return true
}

// same compares two objects of one size. Bytes that are not in the store are like no
// others.
func (s *store) same(a, b object, size int64) (same bool, err error) {
	if a == b {
		return true, nil
	}
	if a == (object{}) {
		a, b = b, a
	}
	for _, o := range []object{a, b} {
		if there, err := s.has(o); err != nil || !there {
			return false, err
		}
	}
	err = s.read(a, func(f *os.File) error {
		if b == (object{}) {
			same = a.alone() && allZero(int(f.Fd()), size)
			return nil
		}
		return s.read(b, func(g *os.File) error {
			same, err = sameBytes(int(f.Fd()), max(a.off, 0), int(g.Fd()), max(b.off, 0), size)
			return err
		})
	})
	return same, err
}

// sameBytes compares two ranges of n bytes, and reads no common hole.
func sameBytes(a int, atA int64, b int, atB, n int64) (bool, error) {
	x, y := make([]byte, 128<<10), make([]byte, 128<<10)
	for pos := int64(0); pos < n; {
		pos = min(nextData(a, atA+pos, atA+n)-atA, nextData(b, atB+pos, atB+n)-atB)
		want := min(n-pos, int64(len(x)))
		i, err := readFull(a, x[:want], atA+pos)
		if err != nil {
			return false, err
		}
		j, err := readFull(b, y[:want], atB+pos)
		if err != nil || i != j || !bytes.Equal(x[:i], y[:j]) || int64(i) < want {
			return false, err
		}
		pos += want
	}
	return true, nil
}

// content gives the bytes of an object to a reader outside.
func (s *store) content(o object, size int64) (io.ReadCloser, error) {
	if o == (object{}) {
		return io.NopCloser(io.LimitReader(zeros{}, size)), nil
	}
	if there, err := s.has(o); err != nil || !there {
		return nil, errors.Join(err, neverStored(nil))
	}
	f, err := os.Open(s.path(o.pack))
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, max(o.off, 0), size), f}, nil
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
