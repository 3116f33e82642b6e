package overlay

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// private is the prefix of overlayfs's own attributes. They describe how a
// layer stacks and are not part of what the tree shows.
const private = "trusted.overlay."

// xattrs reads the extended attributes of f, without overlayfs's own. f may be
// opened with O_PATH, even a symbolic link: its name in /proc leads to what it
// stands for and no further.
func xattrs(f *os.File) (map[string][]byte, error) {
	names, err := listXattr(f)
	if err != nil {
		return nil, err
	}
	m := map[string][]byte{}
	for _, n := range names {
		if strings.HasPrefix(n, private) {
			continue
		}
		v, err := xattr(f, n)
		if err != nil {
			return nil, err
		}
		if v != nil {
			m[n] = v
		}
	}
	return m, nil
}

func listXattr(f *os.File) ([]string, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Flistxattr(int(f.Fd()), buf)
		if errors.Is(err, unix.EBADF) { // O_PATH
			n, err = unix.Listxattr(fdName(f), buf)
		}
		switch {
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 4*len(buf))
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		case err != nil:
			return nil, &fs.PathError{Op: "listxattr", Path: f.Name(), Err: err}
		case n == 0:
			return nil, nil
		default:
			var names []string
			for _, b := range bytes.Split(bytes.TrimSuffix(buf[:n], []byte{0}), []byte{0}) {
				names = append(names, string(b))
			}
			return names, nil
		}
	}
}

// xattr reads one attribute; nil if there is none, or none can be.
func xattr(f *os.File, name string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := unix.Fgetxattr(int(f.Fd()), name, buf)
		if errors.Is(err, unix.EBADF) { // O_PATH
			n, err = unix.Getxattr(fdName(f), name, buf)
		}
		switch {
		case errors.Is(err, unix.ERANGE):
			buf = make([]byte, 64<<10) // XATTR_SIZE_MAX
		case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		case err != nil:
			return nil, &fs.PathError{Op: "getxattr " + name, Path: f.Name(), Err: err}
		default:
			return append([]byte{}, buf[:n]...), nil
		}
	}
}

func statT(fi fs.FileInfo) (*syscall.Stat_t, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return st, ok
}
