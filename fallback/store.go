package fallback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
)

// store keeps bytes in numbered files, the packs, that are written once. A
// small file is a range of a pack; a large or sparse one is a pack of its own
// that the filesystem may share with the tree (FICLONE).
type store struct {
	dir   string
	hooks hooks

	mu    sync.Mutex
	next  uint64
	fresh []uint64 // packs made since the last settle or forget
	bytes int64    // in them
}

// Files up to this size go together into packs: one inode and one sync for
// many of them. Larger ones stand alone, where a clone or a copy inside the
// kernel is worth its call.
const smallFile = 64 << 10

const packSize = 64 << 20

func (s *store) path(pack uint64) string {
	return filepath.Join(s.dir, strconv.FormatUint(pack, 16))
}

// sweep removes packs that no transaction lists, which a crash left.
func (s *store) sweep(next uint64) error {
	s.next = next
	names, err := readNames(s.dir)
	for _, name := range names {
		if n, e := strconv.ParseUint(name, 16, 64); e == nil && n >= next {
			err = errors.Join(err, os.Remove(s.path(n)))
		}
	}
	return err
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	names, err := d.Readdirnames(-1)
	return names, errors.Join(err, d.Close())
}

// number takes the next number of a pack.
func (s *store) number() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.next
	s.next++
	return n
}

// create makes the next pack.
func (s *store) create() (*os.File, uint64, error) {
	n := s.number()
	s.mu.Lock()
	s.fresh = append(s.fresh, n)
	s.mu.Unlock()
	crash.Point("fallback.pack")
	f, err := os.OpenFile(s.path(n), os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	return f, n, err
}

func (s *store) count(n int64) {
	s.mu.Lock()
	s.bytes += n
	s.mu.Unlock()
}

// made is the number of bytes in new packs.
func (s *store) made() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bytes
}

// A few packs are synced one by one; many at once by their filesystem.
const fewFiles = 64

// settle makes the new packs last. Until a transaction lists them a crash
// forgets them.
func (s *store) settle() error {
	if len(s.fresh) > fewFiles {
		if err := durable.SyncFilesystem(s.dir); err != nil {
			return err
		}
	} else if len(s.fresh) > 0 {
		for _, n := range s.fresh {
			if err := syncFile(s.path(n)); err != nil {
				return err
			}
		}
		if err := durable.SyncDir(s.dir); err != nil {
			return err
		}
	}
	crash.Point("fallback.settled")
	s.fresh, s.bytes = nil, 0
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fdatasync(int(f.Fd())), f.Close())
}

// forget removes the new packs, after an error.
func (s *store) forget() error {
	s.mu.Lock()
	fresh := s.fresh
	s.fresh, s.bytes = nil, 0
	s.mu.Unlock()
	var err error
	for _, n := range fresh {
		err = errors.Join(err, s.remove(n))
	}
	return err
}

func (s *store) remove(pack uint64) error {
	if err := os.Remove(s.path(pack)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// allocated is what an object of that size takes, less where it is sparse.
func (s *store) allocated(o object, size int64) int64 {
	if !o.alone() {
		return size
	}
	st, err := statAt(unix.AT_FDCWD, s.path(o.pack), s.path(o.pack))
	if err != nil {
		return size // whoever reads it will tell
	}
	return min(size, st.blocks*512)
}

// read calls use with the pack that holds o.
func (s *store) read(o object, use func(f *os.File) error) error {
	f, err := os.Open(s.path(o.pack))
	if err != nil {
		return fmt.Errorf("read object: %w", err)
	}
	return errors.Join(use(f), f.Close())
}
