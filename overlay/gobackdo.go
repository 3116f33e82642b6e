package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// What keeps a path from being carried.
var (
	errChanged   = errors.New("changed in both views")
	errElsewhere = errors.New("its bytes are elsewhere")
)

// carryAll carries what the new layer has. It can be repeated. The directories that
// were moved go by way of names of their own, for they may have changed places.
func (g *goBack) carryAll() (err error) {
	if g.note.Steps == nil {
		if g.note.Steps, err = g.plan(); err != nil {
			return err
		}
		g.recall()
		// The record and the layer last before the old view is changed.
		if err := errors.Join(durable.SyncFilesystem(g.d.layers), g.save()); err != nil {
			return err
		}
	}
	crash.Point("overlay.back.planned")
	if g.from, err = g.d.openUnit(unit{g.d.dir(g.open, ""), 1}); err != nil {
		return err
	}
	defer closeAll(g.from)
	root, err := g.d.openShown()
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	g.r = restore{ctx: g.ctx, root: root, links: map[inode]string{}}
	if err = g.lookAgain(); err != nil {
		return err
	}
	if !g.note.Cleared {
		g.clear()
		g.note.Cleared = true
		if err := g.save(); err != nil {
			return err
		}
	}
	g.placeAll()
	// After a kill and a boot the old view may not be mounted any more.
	if err := g.d.join(g.ctx, g.note.To); err != nil {
		return err
	}
	crash.Point("overlay.back.carried")
	return durable.SyncFilesystem(g.d.layers)
}

func (g *goBack) placeAll() {
	var dirs []string
	for i, s := range g.note.Steps {
		crash.Point("overlay.back.carrying")
		err := g.place(i, s)
		if g.tell(s.Path, err); err == nil && s.Type == snapshot.TypeDir && s.From == "" && (s.Kind == snapshot.ChangeAdded || s.Kind == snapshot.ChangeType) {
			dirs = append(dirs, s.Path)
		}
	}
	for _, path := range slices.Backward(dirs) { // what came into them has changed their times
		g.tell(path, g.putTimes(path))
	}
}

// recall takes over what was seen before the old view was shown again: since then
// others have written to it by path.
func (g *goBack) recall() {
	for i, s := range g.note.Steps {
		if was, ok := g.note.Seen[s.Path]; ok && s.File {
			g.note.Steps[i].Seen = was
		}
	}
}

func (g *goBack) tell(path string, err error) {
	if err != nil {
		g.left = append(g.left, fmt.Sprintf("%q (%v)", path, err))
	}
}

// clear removes what was removed and takes away what was moved, children first.
func (g *goBack) clear() {
	var order []int
	for i, s := range g.note.Steps {
		if s.From != "" || s.Kind == snapshot.ChangeDeleted {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(g.note.Steps[j].left(), g.note.Steps[i].left()) })
	for _, i := range order {
		s := g.note.Steps[i]
		err := g.at(s.left(), func(at *os.File, name string) error {
			if s.From != "" {
				return g.takeAway(at, name, i, s)
			}
			return g.remove(at, name, s)
		})
		if errors.Is(err, fs.ErrNotExist) && (s.From == "" || g.onWay(i)) { // done before
			err = nil
		}
		g.tell(s.Path, err)
		crash.Point("overlay.back.cleared")
	}
}

// left is the path that a step leaves empty.
func (s *backStep) left() string { return cmp.Or(s.From, s.Old) }

// at calls f with the directory of a path of the tree.
func (g *goBack) at(path string, f func(at *os.File, name string) error) error {
	at, err := openBelow(g.r.root, filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer at.Close() //nolint:errcheck // read only
	return f(at, filepath.Base(path))
}

// openBelow opens a path below a directory, through no link.
func openBelow(dir *os.File, path string, flags uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: flags | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(int(dir.Fd()), path, &how)
	if err != nil {
		return nil, &fs.PathError{Op: "openat2", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// now is what the tree has by a name; nil if there is nothing.
func now(at *os.File, name string) (*entry, error) {
	f, st, err := openEntry(at, name)
	if f == nil || err != nil {
		return nil, err
	}
	return &entry{f: f, st: st}, nil
}

// free tells whether what stands in the way may go: it is what the new view saw,
// nobody has touched it since, and nobody will write to it.
func (g *goBack) free(s backStep, e *entry) bool {
	return s.Free && compareTimes(e.st.Ctim, g.note.Since) < 0 && !g.holds(inode{e.st.Dev, e.st.Ino})
}

func (g *goBack) remove(at *os.File, name string, s backStep) error {
	e, err := now(at, name)
	if e == nil || err != nil {
		return err
	}
	defer e.close()
	flags := 0
	if e.st.Mode&unix.S_IFMT == unix.S_IFDIR {
		flags = unix.AT_REMOVEDIR // it fails if others have made something in it
	} else if !g.free(s, e) {
		return errChanged
	}
	return ignoreMissing(unix.Unlinkat(int(at.Fd()), name, flags))
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// way is where what a step moves is between two places: in the tree's root. Nobody
// sweeps such names.
func (g *goBack) way(step int) string {
	return ".deployx-back-" + string(g.open) + "." + strconv.Itoa(step)
}

func (g *goBack) onWay(step int) bool {
	e, err := now(g.r.root, g.way(step))
	e.close()
	return e != nil && err == nil
}

func (g *goBack) takeAway(at *os.File, name string, i int, s backStep) error {
	if !s.Free {
		return errChanged
	}
	if g.onWay(i) { // done before
		return nil
	}
	return unix.Renameat2(int(at.Fd()), name, int(g.r.root.Fd()), g.way(i), unix.RENAME_NOREPLACE)
}

// place makes what the new view has at one path.
func (g *goBack) place(i int, s backStep) error {
	if s.Kind == snapshot.ChangeDeleted {
		return nil
	}
	f, err := openBelow(g.from, s.Path, unix.O_PATH)
	if err != nil {
		return err
	}
	goal := &entry{f: f}
	defer goal.close()
	if err := unix.Fstat(int(f.Fd()), &goal.st); err != nil {
		return err
	}
	return g.at(s.Path, func(at *os.File, name string) error {
		switch {
		case s.From != "":
			return g.putDown(at, name, i, s, goal)
		case s.Kind == snapshot.ChangeMetadata:
			return g.dress(at, name, goal)
		case s.Type == snapshot.TypeDir:
			return g.mkdir(at, name, s, goal)
		}
		return g.file(at, name, s, goal)
	})
}

// putDown gives what was taken away its new name, or where that cannot be its old.
func (g *goBack) putDown(at *os.File, name string, i int, s backStep, goal *entry) error {
	if !g.onWay(i) { // done before, or it was not taken away
		return nil
	}
	err := g.makeRoom(at, name, s)
	if err == nil {
		err = unix.Renameat2(int(g.r.root.Fd()), g.way(i), int(at.Fd()), name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return errors.Join(err, g.name(i, s.From))
	}
	crash.Point("overlay.back.put")
	return g.dress(at, name, goal)
}

// putBack gives what is still on its way its old name again, or where that cannot be
// its new one, parents first: nobody would find it where it is.
func (g *goBack) putBack() error {
	var order []int
	for i, s := range g.note.Steps {
		if s.From != "" {
			order = append(order, i)
		}
	}
	if len(order) == 0 {
		return nil
	}
	root, err := g.d.openShown()
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // read only
	g.r.root = root
	slices.SortFunc(order, func(i, j int) int { return strings.Compare(g.note.Steps[i].From, g.note.Steps[j].From) })
	for _, i := range order {
		if s := g.note.Steps[i]; g.onWay(i) && g.name(i, s.From) != nil {
			if err := g.name(i, s.Path); err != nil {
				g.tell(s.From, fmt.Errorf("it is in the tree as %q now: %w", g.way(i), err))
			}
		}
	}
	return nil
}

// name gives what a step has taken away a name that is free.
func (g *goBack) name(step int, path string) error {
	return g.at(path, func(at *os.File, name string) error {
		return unix.Renameat2(int(g.r.root.Fd()), g.way(step), int(at.Fd()), name, unix.RENAME_NOREPLACE)
	})
}

// makeRoom removes what stands in the way.
func (g *goBack) makeRoom(at *os.File, name string, s backStep) error {
	e, err := now(at, name)
	if e == nil || err != nil {
		return err
	}
	e.close()
	if s.From != "" {
		s.Free = true // it is told of what was moved; the new view has removed this
	}
	return g.remove(at, name, s)
}

// dress gives what is there the attributes that it has in the new view. The time of
// a file that others have written to since stays.
func (g *goBack) dress(at *os.File, name string, goal *entry) error {
	e, err := now(at, name)
	if err != nil {
		return err
	}
	if e == nil || fileType(e) != fileType(goal) {
		e.close()
		return errChanged
	}
	defer e.close()
	touched := compareTimes(e.st.Mtim, g.note.Since) >= 0
	same, err := sameAttributes(e, goal, !touched)
	if err != nil || same {
		return err
	}
	if touched {
		goal.st.Mtim = e.st.Mtim
	}
	return dressLike(goal, e.f)
}

func (g *goBack) mkdir(at *os.File, name string, s backStep, goal *entry) error {
	e, err := now(at, name)
	if err != nil {
		return err
	}
	if e == nil || e.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if e.close(); e != nil {
			err = g.remove(at, name, s)
		}
		if err == nil {
			err = unix.Mkdirat(int(at.Fd()), name, 0o700)
		}
		if err != nil {
			return err
		}
	} else {
		e.close()
	}
	crash.Point("overlay.back.made")
	return g.dress(at, name, goal)
}

func (g *goBack) putTimes(path string) error {
	from, err := openBelow(g.from, path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer from.Close() //nolint:errcheck // O_PATH
	st, err := statxAt(int(from.Fd()), "")
	if err != nil {
		return err
	}
	to, err := openBelow(g.r.root, path, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer to.Close() //nolint:errcheck // O_PATH
	return putTimesBack(to, &st)
}

// holdings are files that somebody has open for writing, or otherwise holds.
type holdings map[inode]bool

// holds tells whether somebody holds a file, as was seen a moment ago: to carry large
// files takes longer. If it cannot be told he does.
func (g *goBack) holds(id inode) bool {
	if time.Now().After(g.due) && g.lookAgain() != nil {
		return true
	}
	return g.held[id]
}

func (g *goBack) lookAgain() (err error) {
	start := time.Now()
	g.held, err = g.d.holdings()
	g.due = time.Now().Add(max(50*time.Millisecond, 10*time.Since(start))) // a tenth of the time is for looking
	return err
}

func (d *Driver) holdings() (holdings, error) {
	sub, err := d.submountsNow()
	if err != nil {
		return nil, err
	}
	defer sub.close()
	found, _, err := d.scan(sub)
	if err != nil {
		return nil, err
	}
	h := holdings{}
	for _, x := range found {
		var st unix.Stat_t
		if x.link != "" {
			st.Dev, st.Ino = unix.Mkdev(x.stat.Dev_major, x.stat.Dev_minor), x.stat.Ino
		} else if unix.Lstat(x.Path, &st) != nil { // a mapping, or a socket
			continue
		}
		h[inode{st.Dev, st.Ino}] = true
	}
	return h, nil
}
