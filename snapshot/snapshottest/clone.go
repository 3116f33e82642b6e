package snapshottest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/internal/treecmp"
)

// exactClone is clone that checks its work.
func exactClone(from, to string) (treecmp.Picture, error) {
	want, err := clone(from, to)
	if err != nil {
		return nil, err
	}
	got, err := treecmp.Take(to)
	if err != nil {
		return nil, err
	}
	if ds := treecmp.Diff(want, got, treecmp.Options{AnyNlink: true, HoleSlack: holeSlack}); len(ds) > 0 {
		return nil, fmt.Errorf("clone of %q differs:\n%v", from, ds)
	}
	return want, nil
}

// clone makes the directory to, which may exist and then is empty, an exact
// copy of the directory from, and returns its picture.
func clone(from, to string) (treecmp.Picture, error) {
	pic, err := treecmp.Take(from)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(to, 0o700); err != nil {
		return nil, err
	}
	paths := pic.Paths()
	for _, path := range paths {
		if err := create(pic[path], path, from, to); err != nil {
			return nil, fmt.Errorf("clone %q: %w", path, err)
		}
	}
	for _, path := range slices.Backward(paths) { // a directory's times come after its entries'
		if err := dress(pic[path], filepath.Join(to, path)); err != nil {
			return nil, fmt.Errorf("clone attributes of %q: %w", path, err)
		}
	}
	return pic, nil
}

func create(e treecmp.Entry, path, from, to string) error {
	dst := filepath.Join(to, path)
	if e.Group != "" && e.Group != path {
		return unix.Link(filepath.Join(to, e.Group), dst)
	}
	if path == "." {
		return nil
	}
	return createAs(e, filepath.Join(from, path), dst)
}

// createAs makes dst the same as src, which e describes, but for attributes.
func createAs(e treecmp.Entry, src, dst string) error {
	kinds := map[byte]uint32{'p': unix.S_IFIFO, 's': unix.S_IFSOCK, 'c': unix.S_IFCHR, 'b': unix.S_IFBLK}
	switch e.Type {
	case 'd':
		return unix.Mkdir(dst, 0o700)
	case 'l':
		return unix.Symlink(e.Target, dst)
	case 'f':
		return copyData(src, dst, e.Size)
	}
	return unix.Mknod(dst, kinds[e.Type]|0o600, int(e.Rdev))
}

// copyData copies a file, holes as holes.
func copyData(from, to string, size int64) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() //nolint:errcheck // only read
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(in.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(out, data), io.NewSectionReader(in, data, end-data)); err != nil {
			return err
		}
		at = end
	}
	return out.Truncate(size)
}

// dress gives path the attributes of e. The order matters: a change of owner
// takes setuid bits and capabilities away, and flags forbid everything after.
func dress(e treecmp.Entry, path string) error {
	if err := unix.Lchown(path, int(e.UID), int(e.GID)); err != nil {
		return err
	}
	if e.Type != 'l' {
		if err := unix.Chmod(path, e.Mode); err != nil {
			return err
		}
	}
	for name, value := range e.Xattrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			return fmt.Errorf("xattr %s: %w", name, err)
		}
	}
	ts := unix.NsecToTimespec(e.Mtime)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if e.Flags == 0 {
		return nil
	}
	return setFlags("/", Op{Path: path, N: int64(e.Flags)})
}
