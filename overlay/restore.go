package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

var _ snapshot.Restorer = (*Driver)(nil)

// Restore changes the shown tree by ordinary file operations, wherever two
// stacks differ. See snapshot.Restorer.
func (d *Driver) Restore(ctx context.Context, v snapshot.View, from, to []snapshot.LayerID, again bool) (left []string, err error) {
	d.indexMu.Lock()
	defer d.indexMu.Unlock()
	ix := d.index(v.Open)
	ix.holdsFor(from)
	if err := d.Fits(ctx, to); err != nil {
		return nil, err
	}
	r := restore{ctx: ctx, links: map[inode]string{}, taken: map[inode]inode{}, locks: locks{}, open: v.Open, again: again}
	err = r.run(d, from, to)
	if snapshot.CodeOf(err) == snapshot.CodeNoSpace {
		err = r.freeFirst(d, from, to)
	}
	if err != nil {
		return nil, err
	}
	if err := d.notePlaced(ix, v.Open, r.made); err != nil {
		return nil, err
	}
	// What the index says is still so: where the stacks differ the tree has been
	// changed, which moves a ctime. But what was made and is removed before the next
	// look leaves no trace.
	for _, path := range r.names {
		ix.owe(path)
	}
	ix.Top, ix.dirty = last(to), true
	return r.left, ix.save()
}

// A restore is one call of Restore. It works through descriptors: the tree's
// contents are hostile.
type restore struct {
	ctx   context.Context
	root  *os.File         // of the shown tree
	links map[inode]string // files made or left: where the first name is
	taken map[inode]inode  // files of the tree with several names, by what they stand for
	was   *merged
	goal  *merged
	open  snapshot.LayerID // what takes the writes
	locks locks
	made  []string          // directories, with all in them
	names []string          // that differed
	aside map[string]string // directories that are being made: their names until then
	again bool              // the tree may be anywhere between the two states
	left  []string          // what others wrote meanwhile, in a restore that is done again
	frees bool              // only what goes is looked after
}

// freeFirst is run on a full disk: what goes makes room for what comes.
func (r *restore) freeFirst(d *Driver, from, to []snapshot.LayerID) error {
	r.frees = true
	err := r.run(d, from, to)
	r.frees = false
	if err != nil {
		return err
	}
	return r.run(d, from, to)
}

func (r *restore) run(d *Driver, from, to []snapshot.LayerID) (err error) {
	common := 0
	for common < min(len(from), len(to)) && from[common] == to[common] {
		common++
	}
	below := d.units(from[:common])
	was, err := d.viewOf(0, d.units(from[common:]), below)
	if err != nil {
		return err
	}
	defer was.close()
	goal, err := d.viewOf(0, d.units(to[common:]), below)
	if err != nil {
		return err
	}
	defer goal.close()
	f, err := was.root()
	if err != nil {
		return err
	}
	g, err := goal.root()
	if err != nil {
		return err
	}
	r.was, r.goal = was, goal
	if r.root, err = d.openShown(); err != nil {
		return err
	}
	defer r.root.Close() //nolint:errcheck // read only
	return errors.Join(r.directory(r.root, f, g, "."), r.lockAll())
}

// directory makes what differs in a directory that both states have, and then
// its attributes. was is nil where it had none.
func (r *restore) directory(at *os.File, was, goal *entry, path string) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	names, err := differing(was, goal)
	if err != nil {
		return err
	}
	if r.again { // the way back from a full disk: each step leaves the room that the next one takes
		slices.Reverse(names)
	}
	before, err := statxAt(int(at.Fd()), "")
	if err != nil {
		return err
	}
	if len(names) > 0 || !r.frees {
		if err := r.unlockOpen(at, path); err != nil {
			return err
		}
	}
	touched, err := r.inside(at, was, goal, names, path)
	if err != nil || r.frees {
		return errors.Join(err, putTimesBack(at, &before)) // for the next try
	}
	return r.dressDir(at, was, goal, &before, touched, path)
}

// inside makes the names of a directory.
func (r *restore) inside(at *os.File, was, goal *entry, names []string, path string) (touched bool, err error) {
	if len(names) > 0 {
		if touched, err = r.sweep(at); err != nil {
			return touched, err
		}
	}
	for _, name := range names {
		r.names = append(r.names, join(path, name))
		did, err := r.name(at, was, goal, name, join(path, name))
		if err != nil {
			return touched, fmt.Errorf("restore %q: %w", join(path, name), err)
		}
		touched = touched || did
	}
	return touched, nil
}

// differing are the names that two directories do not have from the same place.
func differing(was, goal *entry) ([]string, error) {
	set := map[string]bool{}
	if err := addDiffering(set, goal, was); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// dressDir gives a directory the attributes that it is to have. Where both
// states have the same only the time is put back that the work here has moved.
func (r *restore) dressDir(at *os.File, was, goal *entry, before *unix.Statx_t, touched bool, path string) error {
	same, flags := false, false
	if was != nil {
		var err error
		if same, err = sameAttributes(was, goal, true); err != nil {
			return err
		}
		if flags, err = sameShownFlags(was, goal, r.open, false); err != nil {
			return err
		}
	}
	switch {
	case !same:
		if err := dressLike(goal, at); err != nil {
			return err
		}
	case touched:
		if err := putTimesBack(at, before); err != nil {
			return err
		}
	}
	if flags && !r.again { // cut off, it may have left none
		return nil
	}
	return r.flag(at, goal, path)
}

func putTimesBack(at *os.File, st *unix.Statx_t) error {
	times := []unix.Timespec{{Sec: st.Atime.Sec, Nsec: int64(st.Atime.Nsec)}, {Sec: st.Mtime.Sec, Nsec: int64(st.Mtime.Nsec)}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, fdName(at), times, 0); err != nil {
		return &fs.PathError{Op: "utimensat", Path: at.Name(), Err: err}
	}
	return nil
}

// name makes one name what the goal has there, if the states differ in it.
func (r *restore) name(at *os.File, was, goal *entry, name, path string) (touched bool, err error) {
	g, err := goal.dir.lookup(name, true)
	if err != nil {
		return false, err
	}
	defer g.close()
	var f *entry
	if was != nil {
		if f, err = was.dir.lookup(name, true); err != nil {
			return false, err
		}
		defer f.close()
	}
	switch {
	case f == nil && g == nil:
		return false, nil
	case isDir(f) && isDir(g):
		return r.both(at, f, g, name, path)
	case r.frees && g != nil:
		return false, nil
	case f != nil && g != nil && !isDir(f) && !isDir(g) && fileType(f) == fileType(g):
		same, err := r.sameEntry(f, g)
		if err != nil || same && (f.st.Nlink == 1 && g.st.Nlink == 1 || f.st.Ino == g.st.Ino) {
			return false, err
		}
	}
	defer crash.Point("overlay.restored")
	return r.converge(at, f, g, name, path)
}

// sameEntry tells whether two files are the same in every way.
func (r *restore) sameEntry(f, g *entry) (bool, error) {
	if f.st.Dev == g.st.Dev && f.st.Ino == g.st.Ino {
		return true, nil
	}
	kind, err := compareFiles(f, g)
	if kind != "" || err != nil {
		return false, err
	}
	return sameShownFlags(f, g, r.open, false)
}

// both goes into a directory that was there and is to be there.
func (r *restore) both(at *os.File, f, g *entry, name, path string) (bool, error) {
	sub, err := openDirIn(at, name)
	if sub == nil && err == nil {
		if r.frees {
			return false, nil
		}
		return r.converge(at, nil, g, name, path)
	}
	if err != nil {
		return false, err
	}
	defer sub.Close() //nolint:errcheck // read only
	return false, r.directory(sub, f, g, path)
}

// openDirIn opens a directory by name; nil if there is none.
func openDirIn(at *os.File, name string) (*os.File, error) {
	f, err := openAt(int(at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW)
	if missing(err) {
		return nil, nil
	}
	return f, err
}

// converge makes one name what the goal has there, whatever it is now.
func (r *restore) converge(at *os.File, was, goal *entry, name, path string) (bool, error) {
	if others, err := r.others(at, was, goal, name, path); others || err != nil {
		return false, err
	}
	if err := r.unlock(at, name, path); err != nil {
		return false, err
	}
	switch {
	case goal == nil:
		return r.remove(at, was, name, path)
	case isDir(goal):
		return true, r.makeDir(at, goal, name, path)
	}
	done, err := r.inPlace(at, was, goal, name, path)
	if err != nil || done {
		return done, err
	}
	return true, r.replace(at, was, goal, name, path)
}

// others tells whether a name has been written to by others since the last look: it
// is neither what it was nor what it is to be. That is left alone if the work is done
// again, and is an error else.
func (r *restore) others(at *os.File, was, goal *entry, name, path string) (bool, error) {
	f, st, err := openEntry(at, name)
	if f == nil || err != nil {
		return false, err
	}
	now := &entry{f: f, st: st}
	defer now.close()
	for _, e := range []*entry{was, goal} {
		if e == nil || (st.Mode^e.st.Mode)&unix.S_IFMT != 0 {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return false, nil
		}
		if same, err := sameContent(now, e); same || err != nil {
			return false, err
		}
	}
	if r.again {
		r.left = append(r.left, path)
		return true, nil
	}
	return true, &snapshot.Error{
		Code: snapshot.CodeDriftConflict, Msg: "others wrote in the last moment to what would be undone:", Paths: []string{path},
		Hint: "nothing has been undone; try again, or copy it away first",
	}
}

// inPlace sees whether a file has the right content already, and gives it its
// attributes then.
func (r *restore) inPlace(at *os.File, was, goal *entry, name, path string) (bool, error) {
	f, st, err := openEntry(at, name)
	if f == nil || err != nil {
		return false, err
	}
	now := &entry{f: f, st: st}
	defer now.close()
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || fileType(now) != fileType(goal) {
		return false, nil
	}
	kind, err := compareFiles(now, goal)
	if err != nil || kind == snapshot.ChangeModified || st.Nlink > 1 && st.Nlink != goal.st.Nlink {
		return false, err // the names of one file are put together anew
	}
	if goal.st.Nlink > 1 {
		if parted, err := r.parted(was, path); parted || err != nil {
			return false, err
		}
		if ok, err := r.joins(&st, goal, path); !ok || err != nil {
			return false, err
		}
	}
	if kind != "" {
		if err := dressLike(goal, f); err != nil {
			return true, err
		}
	}
	return true, r.flagIn(at, name, goal, path)
}
