package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// A commit makes base what a view of it and some layers shows. Every step can be
// repeated: a commit that was cut off is begun again from the start, and finds
// most of it done.
type commit struct {
	ctx      context.Context
	reach    *reach
	split    int // roots of the view that belong to the layers
	progress func(snapshot.Progress)
	done     int64
	total    int64
	trash    *os.File // see aside
	staged   int
	copies   map[inode]string // files that were copied, by their path in base
	siblings siblings
	lost     bool // something was left out, for it would have shown: see cover
}

// all commits a view. above is the cover, nil if nothing can show.
func (c *commit) all(view *merged, above *cover) error {
	root, err := view.root()
	if err != nil {
		return err
	}
	if root.layer >= c.split {
		return nil
	}
	base, err := openAt(int(c.reach.base.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer base.Close() //nolint:errcheck // read only
	if c.trash, err = openDir(filepath.Join(c.reach.layers, "trash")); err != nil {
		return err
	}
	defer c.trash.Close() //nolint:errcheck // O_PATH
	if err := c.directory(root, base, ".", above); err != nil {
		return err
	}
	c.tell(true)
	return nil
}

// tell reports every so many entries, and at the end.
func (c *commit) tell(end bool) {
	const every = 256
	if c.progress == nil || !end && c.done%every != 0 {
		return
	}
	total := max(c.total, c.done)
	if end {
		total = c.done
	}
	c.progress(snapshot.Progress{Phase: "commit", Files: c.done, Total: total})
}

// directory makes a directory of base what the view shows at its place.
func (c *commit) directory(a *entry, to *os.File, path string, above *cover) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	target{to, "."}.allow() //nolint:errcheck // what still forbids is told by what is then tried
	names, err := a.dir.names(c.split)
	if err != nil {
		return err
	}
	last := a.dir.parts[len(a.dir.parts)-1]
	if last.layer < c.split { // what base has does not show
		if err := addNames(names, to); err != nil {
			return err
		}
	}
	direct := above == nil && last.layer >= c.split && sameInode(last.f, to)
	for name, isDir := range names {
		if !direct || isDir || !c.retouch(a, target{to, name}) {
			if err := c.name(a, target{to, name}, join(path, name), above); err != nil {
				return err
			}
		}
		c.done++
		c.tell(false)
	}
	crash.Point("overlay.commit.directory")
	return target{to, "."}.impose(a.f)
}

func addNames(names map[string]bool, dir *os.File) error {
	f, err := openAt(int(dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	more, err := f.Readdirnames(-1)
	for _, n := range more {
		names[n] = true
	}
	return err
}

func (c *commit) name(a *entry, to target, path string, above *cover) error {
	e, err := a.dir.lookup(to.name, true)
	if err != nil {
		return err
	}
	defer e.close()
	switch {
	case e == nil:
		crash.Point("overlay.commit.remove")
		return to.remove()
	case e.layer >= c.split: // base's own
		return nil
	case e.dir != nil:
		return c.enter(e, to, path, above)
	}
	return c.within(above, to, func() error { return c.file(e, to, path) })
}

// file puts what is no directory into base.
func (c *commit) file(e *entry, to target, path string) error {
	switch {
	case !e.meta:
		return c.place(e, to, path)
	case e.data == nil:
		return fmt.Errorf("%q: its bytes are nowhere to be found", path)
	case e.dataLayer < c.split:
		return c.copyOnce(e, to, path)
	}
	return c.metadata(e, to, path)
}

// enter makes a directory, if need be in the place of something else, and goes
// into it.
func (c *commit) enter(e *entry, to target, path string, above *cover) error {
	var st unix.Stat_t
	err := unix.Fstatat(int(to.dir.Fd()), to.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	there := err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	inside, ok, err := c.below(above, to.name, !there)
	defer func() { inside.close() }()
	if err == nil && ok && !there {
		ok, err = c.appear(above, to)
	}
	if err != nil || !ok {
		return err
	}
	sub, err := openAt(int(to.dir.Fd()), to.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer sub.Close() //nolint:errcheck // read only
	if !there && len(e.dir.parts) == 1 {
		return c.graft(e.f, sub, path)
	}
	return c.directory(e, sub, path, inside)
}

// appear makes a directory, in the place of whatever is there; not ok if it
// would show.
func (c *commit) appear(above *cover, to target) (ok bool, err error) {
	err = unix.Mkdirat(int(to.dir.Fd()), to.name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		if err := to.remove(); err != nil {
			return false, err
		}
		err = unix.Mkdirat(int(to.dir.Fd()), to.name, 0o700)
	}
	if err != nil {
		return false, to.failed("mkdir", err)
	}
	crash.Point("overlay.commit.mkdir")
	if above == nil {
		return true, nil
	}
	if err := above.settle(); err != nil {
		return false, err
	}
	if _, ok, err = c.below(above, to.name, true); err != nil || ok {
		return ok, err
	}
	return false, to.remove()
}

// graft is directory where one layer alone has a part in it, and base nothing
// yet. Nothing need be looked up there, and most files that a commit brings are
// in such directories.
func (c *commit) graft(from, to *os.File, path string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	f, err := openAt(int(from.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	names, err := f.ReadDir(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := c.graftName(target{f, n.Name()}, target{to, n.Name()}, n, join(path, n.Name())); err != nil {
			return err
		}
		c.done++
		c.tell(false)
	}
	crash.Point("overlay.commit.grafted")
	return target{to, "."}.impose(from)
}

func (c *commit) graftName(from, to target, n os.DirEntry, path string) error {
	if n.IsDir() {
		if err := unix.Mkdirat(int(to.dir.Fd()), to.name, 0o700); err != nil {
			return to.failed("mkdir", err)
		}
		src, err := openAt(int(from.dir.Fd()), from.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer src.Close() //nolint:errcheck // O_PATH
		dst, err := openAt(int(to.dir.Fd()), to.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		defer dst.Close() //nolint:errcheck // read only
		return c.graft(src, dst, path)
	}
	if n.Type()&os.ModeCharDevice != 0 {
		var st unix.Stat_t
		if err := unix.Fstatat(int(from.dir.Fd()), from.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return from.failed("stat", err)
		}
		if st.Rdev == 0 {
			return nil // a removal, of nothing that shows
		}
	}
	special, err := from.bare(n.Type().IsRegular())
	if err != nil {
		return err
	}
	if special {
		return fmt.Errorf("%q: what it refers to is nowhere to be found", path)
	}
	err = unix.Linkat(int(from.dir.Fd()), from.name, int(to.dir.Fd()), to.name, 0)
	if err == nil {
		crash.Point("overlay.commit.linked")
		return nil
	}
	f, st, e := openEntry(from.dir, from.name)
	if e != nil {
		return e
	}
	link := &entry{f: f, st: st}
	defer link.close()
	return c.instead(err, link, to, path)
}

// bare takes overlayfs's own attributes off a file, which nothing looks at in a
// file that is whole. Is it not, bare tells so and takes nothing.
func (t target) bare(regular bool) (special bool, err error) {
	names, err := t.xattrNames()
	if err != nil {
		return false, t.failed("listxattr", err)
	}
	for _, n := range names {
		if regular && (n == private+"metacopy" || n == private+"whiteout") {
			return true, nil
		}
	}
	for _, n := range names {
		if len(n) < len(private) || n[:len(private)] != private {
			continue
		}
		if err := t.removeXattr(n); err != nil {
			return false, err
		}
	}
	return false, nil
}

// place puts a file of the layers into base: a link to it.
func (c *commit) place(e *entry, to target, path string) error {
	if _, err := (target{e.parent, e.name}).bare(false); err != nil {
		return err
	}
	err := unix.Linkat(int(e.parent.Fd()), e.name, int(to.dir.Fd()), to.name, 0)
	switch {
	case err == nil:
		crash.Point("overlay.commit.linked")
		return nil
	case !errors.Is(err, unix.EEXIST): // which comes before EXDEV
		return c.instead(err, e, to, path)
	case to.isInode(e):
		return nil
	case !c.reach.joined:
		return c.copyOnce(e, to, path)
	}
	return c.replace(e, to, path)
}

func (t target) isInode(e *entry) bool {
	var st unix.Stat_t
	err := unix.Fstatat(int(t.dir.Fd()), t.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return err == nil && st.Dev == e.st.Dev && st.Ino == e.st.Ino
}

// replace puts a link in the place of what base has.
func (c *commit) replace(e *entry, to target, path string) error {
	aside := c.aside()
	if err := unix.Linkat(int(e.parent.Fd()), e.name, int(aside.dir.Fd()), aside.name, 0); err != nil {
		return c.instead(err, e, to, path)
	}
	crash.Point("overlay.commit.staged")
	return c.moveIn(aside, to)
}

// aside is a place for what is renamed over a name in base when it is whole:
// whoever looks at base itself then finds the old or the new. It is empty.
func (c *commit) aside() target {
	c.staged++
	t := target{c.trash, fmt.Sprintf("commit.%d.%d", os.Getpid(), c.staged)}
	t.remove() //nolint:errcheck // left by a process of the same number; what is then made tells
	return t
}

func (c *commit) moveIn(aside, to target) error {
	move := func() error {
		return unix.Renameat(int(aside.dir.Fd()), aside.name, int(to.dir.Fd()), to.name)
	}
	err := move()
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		if err := to.remove(); err != nil {
			return errors.Join(err, aside.remove())
		}
		crash.Point("overlay.commit.cleared")
		err = move()
	}
	if err != nil {
		return errors.Join(to.failed("rename", err), aside.remove())
	}
	crash.Point("overlay.commit.renamed")
	return nil
}

// instead copies where the kernel makes no link: to another filesystem, or
// beyond the most that a file can have.
func (c *commit) instead(cause error, e *entry, to target, path string) error {
	if !errors.Is(cause, unix.EXDEV) && !errors.Is(cause, unix.EMLINK) && !errors.Is(cause, unix.EPERM) {
		return to.failed("link", cause)
	}
	return c.copyOnce(e, to, path)
}

// copyOnce copies a file for the first of its names and links the others. Where
// nothing can be renamed into base, the copy is made in its place: then no view
// reads bytes of base there (Settle), and the layers shadow the rest.
func (c *commit) copyOnce(e *entry, to target, path string) error {
	made := to
	if c.reach.joined {
		made = c.aside()
	} else if err := to.remove(); err != nil {
		return err
	}
	id := inode{e.st.Dev, e.st.Ino}
	if first, ok := c.copies[id]; !ok || c.linkInBase(first, made) != nil {
		c.copies[id] = path
		if err := made.replica(e); err != nil {
			return errors.Join(err, made.remove())
		}
	}
	crash.Point("overlay.commit.copied")
	if made == to {
		return nil
	}
	return c.moveIn(made, to)
}

// linkInBase links to a path of base, following nothing on the way.
func (c *commit) linkInBase(path string, to target) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(int(c.reach.base.Fd()), filepath.Dir(path), &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	return unix.Linkat(fd, filepath.Base(path), int(to.dir.Fd()), to.name, 0)
}

// metadata gives a file of base, whose bytes a view still reads, other
// attributes: in place, for the layers show their own. A file with other names,
// which must not change, is copied.
func (c *commit) metadata(e *entry, to target, path string) error {
	f, st, err := openEntry(to.dir, to.name)
	if err != nil {
		return err
	}
	if f == nil {
		return c.copyOnce(e, to, path)
	}
	defer f.Close() //nolint:errcheck // O_PATH
	var data unix.Stat_t
	if err := unix.Fstat(int(e.data.Fd()), &data); err != nil {
		return to.failed("fstat", err)
	}
	if data.Dev != st.Dev || data.Ino != st.Ino {
		return fmt.Errorf("%q: its bytes are under another name, which a settled layer never has", path)
	}
	begun := c.siblings.has(&e.st)
	same, err := sameAttributes(e, &entry{f: f, st: st}, true)
	if err != nil || same && !begun {
		return err
	}
	if begun || st.Nlink > 1 {
		return c.sibling(e, to)
	}
	crash.Point("overlay.commit.metadata")
	return to.impose(e.f)
}
