package overlay

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// carry puts on m, a detached mount of the tree, what is mounted below the tree
// now. It returns m, or another one in its place. Nobody sees a difference yet.
func (d *Driver) carry(m *os.File) (_ *os.File, s *submounts, err error) {
	if s, err = d.submountsNow(); err != nil || len(s.list) == 0 {
		return m, s, err
	}
	if err = s.clone(); err == nil {
		err = s.fit(m)
	}
	if err == nil {
		m, err = d.has.laden(m, s, d.stage())
	}
	return m, s, err
}

// laden is m with the clones on it. Kernels before 6.15 attach mounts only to what
// is attached in our namespace: there m is on stage for a moment, and a clone of
// all that stands there is taken.
func (f *features) laden(m *os.File, s *submounts, stage string) (_ *os.File, err error) {
	if f.loadAny {
		n, err := s.attach(m)
		if n > 0 || !errors.Is(err, unix.EINVAL) {
			return m, err
		}
		f.loadAny = false
	}
	if err := makeStage(stage); err != nil {
		return m, err
	}
	if err := attach(m, stage, 0); err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			m.Close() //nolint:errcheck // it would hold the mount
		}
		err = errors.Join(err, clearStage(stage))
	}()
	if err := unix.Mount("", stage, "", unix.MS_PRIVATE, ""); err != nil {
		return m, os.NewSyscallError("make private", err)
	}
	if _, err := s.attach(m); err != nil {
		return m, err
	}
	crash.Point("overlay.staged")
	all, err := openTree(unix.AT_FDCWD, stage, unix.OPEN_TREE_CLONE|unix.AT_RECURSIVE)
	if err != nil {
		return m, err
	}
	return all, m.Close() // it would hold the mount
}

const settleTries = 5

// settle brings m, which is attached and not seen yet, up to what has been mounted
// and unmounted below the tree since it was laden.
func (s *submounts) settle(m *os.File) error {
	for range settleTries {
		now, err := s.d.submountsNow()
		if err != nil || s.same(now) {
			return err
		}
		if err := s.follow(now, m); err != nil {
			return err
		}
	}
	return s.d.inTheWay([]snapshot.Holder{{Name: "mount", How: "somebody mounts and unmounts below the tree all the time", Path: s.d.tree}})
}

// strip takes everything off m, which stays beneath the old view: nothing takes it
// away from there (see Hide).
func (s *submounts) strip(m *os.File) (err error) {
	for _, x := range s.list {
		if e := x.detach(m); !missing(e) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// follow takes over what now lists.
func (s *submounts) follow(now *submounts, m *os.File) error {
	defer now.close()
	if err := now.clone(); err != nil {
		return err
	}
	gone, came := s.without(now), now.without(s)
	for _, g := range gone {
		if err := g.detach(m); err != nil {
			return err
		}
	}
	for _, c := range came {
		if err := c.attach(m); err != nil {
			return err
		}
	}
	s.list = now.list
	return nil
}

// shelter is settle for a kernel that has base shown between two views: there the
// mounts stand on base meanwhile, if that can be reached, lest a kill in that moment
// leave the host without them. What has been mounted since m was laden is refused.
func (s *submounts) shelter() error {
	now, err := s.d.submountsNow()
	if err != nil {
		return err
	}
	defer now.close()
	if !s.same(now) {
		return s.d.inTheWay([]snapshot.Holder{{Name: "mount", How: "was mounted or unmounted in this moment", Path: s.d.tree}})
	}
	if len(now.list) == 0 {
		return nil
	}
	base := s.d.underneath()
	if base == nil {
		return nil
	}
	defer base.Close() //nolint:errcheck // O_PATH
	if err := now.clone(); err != nil {
		return err
	}
	for _, m := range now.list {
		err := m.attach(base)
		if errors.Is(err, unix.EXDEV) || missing(err) {
			continue // it stands there already, left by one who was killed; or base has no place for it
		}
		if err != nil {
			return errors.Join(err, s.d.unveil())
		}
	}
	return nil
}

// underneath opens the tree's directory on the mount that ours covers, which no
// path leads to any more: by its handle (open_by_handle_at(2)). Nil where that
// cannot be had: the tree was itself a mount, or its filesystem has no handles.
func (d *Driver) underneath() *os.File {
	base, err := d.openBase()
	if err != nil {
		return nil
	}
	defer base.Close() //nolint:errcheck // O_PATH
	parent, err := openAt(unix.AT_FDCWD, filepath.Dir(d.tree), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	defer parent.Close() //nolint:errcheck // read only
	handle, _, err := unix.NameToHandleAt(int(base.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil {
		return nil
	}
	fd, err := unix.OpenByHandleAt(int(parent.Fd()), handle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), d.tree)
	if !sameFile(fdName(f), fdName(base)) {
		f.Close() //nolint:errcheck // O_PATH
		return nil
	}
	return f
}

// unveil deals with mounts below the tree that ours covers: where the tree has one in
// the same place it was left by one who was killed, and goes; else it was mounted in
// the moment before it was covered, and is carried.
func (d *Driver) unveil() error {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	ids, _, err := d.ownMounts()
	if err != nil {
		return err
	}
	for _, top := range all {
		if !ids[uint64(top.ID)] {
			continue
		}
		hidden, now := d.submountsOn(all, top.Parent), d.submountsOn(all, top.ID)
		if len(hidden.list) == 0 {
			return nil
		}
		return d.unveilThese(hidden, now)
	}
	return nil
}

func (d *Driver) unveilThese(hidden, now *submounts) error {
	defer hidden.close()
	base := d.underneath()
	if base == nil {
		return nil // Hide brings them into view
	}
	defer base.Close() //nolint:errcheck // O_PATH
	root, err := openTree(unix.AT_FDCWD, d.tree, 0)
	if err != nil {
		return err
	}
	defer d.letGo(root)
	for _, m := range hidden.list {
		if m.f, err = m.reach(base, 0); err != nil {
			return err
		}
		if id, err := mountOf(m.f); err != nil || id != uint64(m.ID) {
			continue // another is mounted over it
		}
		if err := m.bring(now, root); err != nil {
			return err
		}
	}
	return nil
}

// bring carries a hidden mount to the shown view, unless that has one in its place,
// and takes it away.
func (m *submount) bring(now *submounts, root *os.File) (err error) {
	if !slices.ContainsFunc(now.list, func(n *submount) bool { return n.rel == m.rel }) {
		if m.clone, err = cloneAll(m.f); err == nil {
			m.dir, err = isDirectory(m.f)
		}
		if err != nil {
			return err
		}
		if err := m.attach(root); err != nil {
			return err
		}
	}
	return detach(m.f, m.Mountpoint)
}

// hideCarrying takes the tree's mount away, with others on it. They are put on
// the directory that it covers before it goes, so that they are always seen; where
// nothing leads there (see underneath) they are seen again some microseconds
// later. The proof is that of a swap: if somebody can still write to the old mount,
// it comes back.
func (d *Driver) hideCarrying(ctx context.Context, sub *submounts) error {
	if err := d.unveil(); err != nil {
		return err
	}
	plain, err := d.openBase()
	if err != nil {
		return err
	}
	defer plain.Close() //nolint:errcheck // O_PATH
	if err := errors.Join(sub.clone(), sub.fit(plain)); err != nil {
		return err
	}
	old, err := openTree(unix.AT_FDCWD, d.tree, 0)
	if err != nil {
		return err
	}
	defer d.letGo(old)
	back, err := cloneAll(old)
	if err != nil {
		return err
	}
	defer d.letGo(back)
	if err := d.uncover(sub); err != nil {
		return err
	}
	if _, err := freezeSoon(old, d.freezePatience); err != nil {
		back := errors.Join(attach(back, d.tree, 0), d.unveil())
		return errors.Join(d.busy(ctx, err), back)
	}
	return nil
}

// uncover unmounts what shows the tree, after or before sub has been attached to
// what comes into view.
func (d *Driver) uncover(sub *submounts) error {
	base := d.underneath()
	if base != nil {
		defer base.Close() //nolint:errcheck // O_PATH
		if _, err := sub.attach(base); err != nil {
			return errors.Join(err, d.unveil())
		}
		crash.Point("overlay.hiding")
	}
	if err := unmountTop(d.tree); err != nil || base != nil {
		return err
	}
	crash.Point("overlay.uncovered")
	left, err := d.submountsNow() // by one who was killed, before the tree was shown
	if err != nil {
		return err
	}
	defer left.close()
	dir, err := openTree(unix.AT_FDCWD, d.tree, 0)
	if err != nil {
		return err
	}
	defer d.letGo(dir)
	for _, m := range left.list {
		err = errors.Join(err, m.detach(dir))
	}
	_, e := sub.attach(dir)
	return errors.Join(err, e)
}
