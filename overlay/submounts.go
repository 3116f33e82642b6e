package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// What is mounted below the tree stands on the mount that shows the tree, and
// would go from view with it. So a clone of each such mount, with all that stands on
// it, is put on the next view before that is shown: the same filesystem in the same
// place. The one that it was cloned from goes with the old view. Who has a file open
// there goes on with it; a directory there is a hold (scanner.process), for its way
// out of the mount, and into those that stand on it, would be lost.

// A submount is a mount that stands on the one that shows the tree.
type submount struct {
	*mountinfo.Info
	rel   string   // below the tree
	sees  string   // what is mounted there and on it: two that see the same are alike
	dir   bool     // else it is mounted on a file
	f     *os.File // O_PATH, its root
	clone *os.File // of it and all that stands on it, attached nowhere yet
}

// submounts are what stands on one mount below the tree's path.
type submounts struct {
	d    *Driver
	list []*submount
	ids  map[uint64]bool // of these and all that stand on them
	part place           // what of which filesystem the mount shows at the tree's path
}

// submountsNow lists what is mounted below the tree as it is seen now.
func (d *Driver) submountsNow() (*submounts, error) {
	if mounts.None(d.tree) {
		return &submounts{d: d}, nil
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	top, err := mounts.ID(d.tree)
	if err != nil {
		return nil, err
	}
	return d.submountsOn(all, top), nil
}

func (d *Driver) submountsOn(all []*mountinfo.Info, id int) *submounts {
	s := &submounts{d: d, ids: map[uint64]bool{}}
	if on := find(all, id); on != nil {
		s.part = place{device(on), filepath.Join(on.Root, strings.TrimPrefix(d.tree, on.Mountpoint))}
	}
	by := map[int]*submount{}
	for _, m := range mounts.On(all, id, d.tree) {
		at := by[m.Parent]
		if m.Parent == id {
			at = &submount{Info: m, rel: strings.TrimPrefix(m.Mountpoint, d.tree+"/")}
			s.list = append(s.list, at)
		}
		by[m.ID] = at
		at.sees += fmt.Sprintf("%q %d:%d %q\n", m.Mountpoint, m.Major, m.Minor, m.Root)
		s.ids[uint64(m.ID)] = true
	}
	return s
}

// close lets the handles go. What was cloned and not attached dissolves.
func (s *submounts) close() {
	for _, m := range s.list {
		for _, f := range []*os.File{m.f, m.clone} {
			if f != nil {
				f.Close() //nolint:errcheck // a mount handle
			}
		}
		m.f, m.clone = nil, nil
	}
}

// stuck names those that cannot be carried, and why.
func (s *submounts) stuck() (h []snapshot.Holder) {
	for _, m := range s.list {
		if why := s.fixed(m); why != "" {
			h = append(h, snapshot.Holder{Name: "mount", How: "cannot be carried over to another view: " + why, Path: m.Mountpoint})
		}
	}
	return h
}

// fixed says why a mount cannot be carried; "" if it can. It opens the mount.
func (s *submounts) fixed(m *submount) string {
	if strings.HasPrefix(m.Optional, "unbindable") {
		return "it is unbindable (mount_namespaces(7))"
	}
	if device(m.Info) == s.part.dev && within(m.Root, s.part.path) {
		return "it shows a part of the tree itself"
	}
	if strings.HasPrefix(m.Source, sourcePrefix) {
		return "it shows another deployx's tree"
	}
	if m.f == nil {
		f, err := openTree(unix.AT_FDCWD, m.Mountpoint, 0)
		if err != nil {
			return err.Error()
		}
		m.f = f
	}
	id, err := mountOf(m.f)
	if err == nil {
		m.dir, err = isDirectory(m.f)
	}
	switch {
	case err != nil:
		return err.Error()
	case id != uint64(m.ID):
		return "another is mounted over it"
	}
	return ""
}

// clone makes clones of all that are there.
func (s *submounts) clone() (err error) {
	if h := s.stuck(); len(h) > 0 {
		return s.d.inTheWay(h)
	}
	for _, m := range s.list {
		if m.clone != nil {
			continue
		}
		if m.clone, err = cloneAll(m.f); err != nil {
			return fmt.Errorf("carry the mount on %q: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// cloneAll makes a detached clone of the mount root and all that stands on it. It
// propagates to nobody and gets nothing: else what is unmounted with the old view
// would be unmounted on the clone too (mount_namespaces(7)). On a shared mount it
// becomes shared anew.
func cloneAll(root *os.File) (*os.File, error) {
	c, err := openTree(int(root.Fd()), "", unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE|unix.AT_EMPTY_PATH)
	if err != nil {
		return nil, err
	}
	err = unix.MountSetattr(int(c.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	if errors.Is(err, unix.ENOSYS) { // before 5.12
		err = unix.Mount("", fdName(c), "", unix.MS_PRIVATE|unix.MS_REC, "")
	}
	if err != nil {
		c.Close() //nolint:errcheck // it dissolves
		return nil, fmt.Errorf("make private: %w", err)
	}
	return c, nil
}

func (d *Driver) inTheWay(h []snapshot.Holder) error {
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("mounts below %q are in the way", d.tree), Holders: h,
		Hint: "unmount them (umount PATH) and try again; nothing was changed",
	}
}

// fit refuses, with the names of the mounts, a directory that does not have
// something to mount each of them on.
func (s *submounts) fit(root *os.File) error {
	var h []snapshot.Holder
	for _, m := range s.list {
		at, err := m.point(root)
		if err != nil && !missing(err) {
			return err
		}
		if err != nil {
			h = append(h, m.without())
			continue
		}
		at.Close() //nolint:errcheck // O_PATH
	}
	if len(h) > 0 {
		return s.d.inTheWay(h)
	}
	return nil
}

var _ snapshot.Mounter = (*Driver)(nil)

// Fits looks for what is mounted below the tree in the layers themselves. See
// snapshot.Mounter.
func (d *Driver) Fits(_ context.Context, layers []snapshot.LayerID) error {
	s, err := d.submountsNow()
	if err != nil || len(s.list) == 0 {
		return err
	}
	defer s.close()
	v, err := d.viewOf(0, nil, d.units(layers))
	if err != nil {
		return err
	}
	defer v.close()
	var h []snapshot.Holder
	for _, m := range s.list {
		e, err := v.resolve(m.rel, false)
		if err != nil {
			return err
		}
		if s.fixed(m) == "" && (e == nil || isDir(e) != m.dir) {
			h = append(h, m.without())
		}
		e.close()
	}
	if len(h) > 0 {
		return d.inTheWay(h)
	}
	return nil
}

func (m *submount) without() snapshot.Holder {
	return snapshot.Holder{Name: "mount", How: "is mounted where the state asked for has nothing to mount it on", Path: m.Mountpoint}
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

// point opens what m is to be mounted on, below root. It goes through no link and
// no other mount.
func (m *submount) point(root *os.File) (*os.File, error) {
	f, err := m.reach(root, unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, err
	}
	dir, err := isDirectory(f)
	if err == nil && dir != m.dir {
		err = &fs.PathError{Op: "mount", Path: m.rel, Err: unix.ENOTDIR}
	}
	if err != nil {
		f.Close() //nolint:errcheck // O_PATH
		return nil, err
	}
	return f, nil
}

func (m *submount) reach(root *os.File, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | resolve,
	}
	for {
		fd, err := unix.Openat2(int(root.Fd()), m.rel, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), m.rel), nil
		case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR): // a rename went on (openat2(2))
			return nil, &fs.PathError{Op: "openat2", Path: m.rel, Err: err}
		}
	}
}

func isDirectory(f *os.File) (bool, error) {
	st, err := statxAt(int(f.Fd()), "")
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// attach puts the clones on a mount of the tree that has nothing on it. n of them
// stand there.
func (s *submounts) attach(root *os.File) (n int, err error) {
	for _, m := range s.list {
		if err := m.attach(root); err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func (m *submount) attach(root *os.File) error {
	at, err := m.point(root)
	if err != nil {
		return err
	}
	defer at.Close() //nolint:errcheck // O_PATH
	err = unix.MoveMount(int(m.clone.Fd()), "", int(at.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return &fs.PathError{Op: "move_mount", Path: m.Mountpoint, Err: err}
	}
	err = m.clone.Close()
	m.clone = nil
	return err
}

// detach takes away what is mounted below root where m was. The same filesystem
// is, or is about to be, shown at the same path, so that it may go lazily:
// nobody's file is lost with it.
func (m *submount) detach(root *os.File) error {
	at, err := m.reach(root, 0)
	if err != nil {
		return err
	}
	defer at.Close() //nolint:errcheck // O_PATH
	return detach(at, m.Mountpoint)
}

func detach(root *os.File, path string) error {
	if err := unix.Unmount(fdName(root), unix.MNT_DETACH); err != nil {
		return &fs.PathError{Op: "umount", Path: path, Err: err}
	}
	return nil
}

// hold tells whether a path lies in one of them.
func (s *submounts) hold(path string) bool {
	return slices.ContainsFunc(s.list, func(m *submount) bool { return within(path, m.Mountpoint) })
}

// openShown opens the root of the shown tree, to work in it: by a mount of its own
// on which nothing stands, so that no way leads into what is mounted below.
func (d *Driver) openShown() (*os.File, error) {
	alone, err := openTree(unix.AT_FDCWD, d.tree, unix.OPEN_TREE_CLONE)
	if err != nil {
		return nil, err
	}
	defer d.letGo(alone)
	return openAt(int(alone.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
}

// same tells whether two lists are of the same mounts.
func (s *submounts) same(t *submounts) bool {
	return len(s.list) == len(t.list) && len(s.without(t)) == 0
}

// without are those of s that t has none like.
func (s *submounts) without(t *submounts) (rest []*submount) {
	seen := map[string]bool{}
	for _, m := range t.list {
		seen[m.sees] = true
	}
	for _, m := range s.list {
		if !seen[m.sees] {
			rest = append(rest, m)
		}
	}
	return rest
}
