package fallback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// checkPlaces refuses a tree and a state directory of which one holds the
// other, however their paths are spelled.
func checkPlaces(tree, state string) error {
	if !filepath.IsAbs(tree) || tree == "/" {
		return unsupported(fmt.Sprintf("the tree %q is not an absolute path, or is /", tree), "name a directory below /")
	}
	st, err := os.Lstat(tree)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return unsupported(fmt.Sprintf("%q is no directory", tree), "name the directory itself, not a link to it")
	}
	if in, err := within(state, st); err != nil || in {
		return errors.Join(err, inside(state, tree, in))
	}
	s, err := os.Stat(state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in, err := within(tree, s)
	return errors.Join(err, inside(tree, state, in))
}

func inside(a, b string, in bool) error {
	if !in {
		return nil
	}
	return unsupported(fmt.Sprintf("%q lies in %q", a, b), "choose another state directory with --state")
}

func unsupported(msg, hint string) error {
	return &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: msg, Hint: hint}
}

// within walks from path, or the nearest directory above it that exists, to
// the root of the filesystem, and says whether dir is on the way.
func within(path string, dir fs.FileInfo) (bool, error) {
	fd := -1
	for p := path; fd < 0; p = filepath.Dir(p) {
		var err error
		fd, err = unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return false, sysError("open", p, err)
		}
	}
	want, _ := sysStat(dir)
	return climb(fd, want)
}

func climb(fd int, want *syscall.Stat_t) (in bool, err error) {
	for {
		var here, up unix.Stat_t
		if err := unix.Fstat(fd, &here); err != nil {
			return false, errors.Join(err, unix.Close(fd))
		}
		if here.Dev == want.Dev && here.Ino == want.Ino {
			return true, unix.Close(fd)
		}
		above, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return false, err
		}
		if err := unix.Fstat(above, &up); err != nil || up.Dev == here.Dev && up.Ino == here.Ino {
			return false, errors.Join(err, unix.Close(above))
		}
		fd = above
	}
}

func sysStat(fi fs.FileInfo) (*syscall.Stat_t, bool) {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return st, ok
}

func sameDevice(a, b fs.FileInfo) bool {
	x, okA := sysStat(a)
	y, okB := sysStat(b)
	return okA && okB && x.Dev == y.Dev
}

// size writes bytes as people read them.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func tooMuch(need, room int64) error {
	return &snapshot.Error{
		Code: snapshot.CodeNoSpace,
		Msg:  fmt.Sprintf("the copies would take %s more, and --max-bytes leaves %s", size(need), size(max(room, 0))),
		Hint: "give more with --max-bytes, or leave something out with --exclude",
	}
}

// checkRoom refuses a baseline that would not fit, before it is begun.
func (d *Driver) checkRoom(s *scan) error {
	_, bytes, small := s.total()
	if d.opt.MaxBytes > 0 && bytes > d.opt.MaxBytes {
		return tooMuch(bytes, d.opt.MaxBytes)
	}
	free, err := freeBytes(d.opt.State)
	if err != nil {
		return err
	}
	need := bytes
	if d.clones(s.root.fd) {
		need = small
	}
	if need > free {
		return &snapshot.Error{
			Code: snapshot.CodeNoSpace,
			Msg:  fmt.Sprintf("copying base takes %s, and %s has %s free", size(need), d.opt.State, size(free)),
			Hint: "make room, put the state elsewhere with --state, or leave something out with --exclude",
		}
	}
	return nil
}

func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, sysError("statfs", dir, err)
	}
	return available(&fs), nil
}

// available is what we may use: root also what is reserved for root.
func available(fs *unix.Statfs_t) int64 {
	if isUnprivileged() {
		return int64(fs.Bavail) * fs.Bsize
	}
	return int64(fs.Bfree) * fs.Bsize
}

// clones says that the store can share blocks with the open directory's
// filesystem.
func (d *Driver) clones(fd int) bool {
	st, err := statAt(fd, "", ".")
	if err != nil || d.opt.hooks.noClone {
		return false
	}
	a, err := os.Stat(d.opt.State)
	if err != nil {
		return false
	}
	sys, ok := sysStat(a)
	return ok && sys.Dev == st.dev && tryPair(d.opt.State, func(dst, src int) error { return unix.IoctlFileClone(dst, src) }) == nil
}

// tryPair calls try with two scratch files, the second one of a block.
func tryPair(dir string, try func(dst, src int) error) (err error) {
	src, err := os.CreateTemp(dir, "probe")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.Close(), os.Remove(src.Name())) }()
	dst, err := os.CreateTemp(dir, "probe")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close(), os.Remove(dst.Name())) }()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return err
	}
	return try(int(dst.Fd()), int(src.Fd()))
}

// warn tells what of the tree a rollback will not put back, once per stack.
func (d *Driver) warn(base []change) {
	if d.opt.Warn == nil {
		return
	}
	for _, text := range losses(base) {
		d.opt.Warn(text)
	}
}

// losses are what a process without root cannot put back, with the number of
// entries that have it now.
func losses(base []change) []string {
	if !isUnprivileged() {
		return nil
	}
	var foreign, devices int
	uid := uint32(unix.Geteuid())
	for _, c := range base {
		if c.post.uid != uid {
			foreign++
		}
		if k := c.post.kind(); k == unix.S_IFCHR || k == unix.S_IFBLK {
			devices++
		}
	}
	return []string{
		fmt.Sprintf("without root a rollback cannot put back: other owners (%d entries have one now), devices (%d), "+
			"trusted and security extended attributes, the flags immutable and append-only", foreign, devices),
	}
}
