package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// probe gathers checks.
type probe struct{ checks []snapshot.Check }

func (p *probe) add(name string, needed bool, err error, detail string) {
	if err != nil {
		detail = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	p.checks = append(p.checks, snapshot.Check{Name: name, OK: err == nil, Needed: needed, Detail: detail})
}

// Probe tries what the driver needs and what it likes to have, on the tree and
// where the state is or will be. With a tree that is "" or the state itself,
// only the host is tried. It walks the whole tree, to say what a copy of base
// takes. Of what it makes nothing is left.
func Probe(tree, state string) []snapshot.Check {
	p := &probe{}
	near, err := nearest(state)
	if err == nil {
		near, err = os.MkdirTemp(near, ".deployx-probe-")
	}
	p.add("state", true, err, "files can be made where the state is")
	if err != nil {
		return p.checks
	}
	p.host(near)
	if tree != "" && tree != state {
		p.tree(tree, state, near)
	}
	if err := os.RemoveAll(near); err != nil {
		p.add("clean up", false, err, "")
	}
	return p.checks
}

// nearest is dir, or the nearest directory above it that exists.
func nearest(dir string) (string, error) {
	for {
		_, err := os.Stat(dir)
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir, err
		}
		dir = filepath.Dir(dir)
	}
}

// host tries what depends on the kernel, the user and the state's filesystem.
func (p *probe) host(dir string) {
	p.add("copy_file_range", false, tryPair(dir, func(dst, src int) error {
		var from, to int64
		n, err := unix.CopyFileRange(src, &from, dst, &to, 4096, 0)
		if err == nil && n != 4096 {
			err = fmt.Errorf("copied %d of 4096 bytes", n)
		}
		return err
	}), "files are copied inside the kernel")
	p.add("openat2", false, tryOpenat2(dir), "one call opens a path below the tree safely; else it is done step by step")
	p.add("owners", false, tryPair(dir, func(fd, _ int) error {
		return unix.Fchown(fd, os.Geteuid()+1, -1)
	}), "a rollback puts other owners back")
	p.add("devices", false, tryDevice(dir), "a rollback puts devices back")
	p.add("trusted xattrs", false, tryPair(dir, func(fd, _ int) error {
		return unix.Fsetxattr(fd, "trusted.deployx", []byte("x"), 0)
	}), "a rollback puts trusted extended attributes back")
}

// tree tries what depends on the tree.
func (p *probe) tree(tree, state, near string) {
	err := checkPlaces(tree, state)
	p.add("places", true, err, "tree and state lie apart")
	if err != nil {
		return
	}
	d := &Driver{opt: Options{Tree: tree, State: near}, bar: &bar{}}
	root, err := d.root()
	if err != nil {
		p.add("read", true, err, "")
		return
	}
	defer unix.Close(root.fd) //nolint:errcheck // only read
	s, err := walk(context.Background(), root, ".", nil, &d.filter, d.bar, nil)
	p.add("read", true, err, "every directory of the tree can be listed")
	if err != nil {
		return
	}
	p.add("restore", true, tryMake(root), "files can be made where the tree is")
	err = errors.New("blocks cannot be shared between tree and state")
	if d.clones(root.fd) {
		err = nil
	}
	p.add("reflink", false, err, "copies share their blocks with the tree")
	entries, bytes, _ := s.total()
	free, err := freeBytes(near)
	if err == nil {
		err = d.checkRoom(s)
	}
	p.add("room", true, err, fmt.Sprintf("base has %d entries and takes %s; %s are free", entries, size(bytes), size(free)))
	for _, text := range losses(s.entries()) {
		p.add("everything", false, errors.New(text), "")
	}
}

// tryMake makes a file in the tree that never has a name, so that not even the
// directory's time tells of it (open(2), O_TMPFILE). What cannot be tried so is no
// error: a filesystem without such files; overlayfs, which would copy the directory up;
// a directory whose owner may yet let himself write to it.
func tryMake(root beneath) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(root.fd, &st); err != nil {
		return err
	}
	fd, err := -1, error(unix.EROFS)
	if st.Flags&unix.ST_RDONLY == 0 {
		if st.Type == unix.OVERLAYFS_SUPER_MAGIC {
			return nil
		}
		fd, err = openAt(root.fd, ".", unix.O_TMPFILE|unix.O_WRONLY, 0o600)
	}
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EACCES) && os.Geteuid() != 0:
		return nil
	}
	return fmt.Errorf("make a file in the tree: %w", err)
}

func tryDevice(dir string) error {
	path := filepath.Join(dir, "device")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, 0); err != nil {
		return err
	}
	return os.Remove(path)
}

func tryOpenat2(dir string) error {
	fd, err := unix.Openat2(unix.AT_FDCWD, dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// entries are all that a first scan found, as changes from nothing.
func (s *scan) entries() []change {
	files, others, _ := s.collected()
	var cs []change
	for _, list := range [][]found{files, others} {
		for i := range list {
			if list[i].now.mode != 0 {
				cs = append(cs, change{path: list[i].path, post: &list[i].now})
			}
		}
	}
	return cs
}
