package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// aliases finds the names that files of the upper lack: names that the view
// still has for their lower files. It walks the upper, by directory, and then the
// directories of the layer in which the lower file lies, and of those above it. A
// sealed layer is walked at all only if it has several names for the file, which is
// found once for each layer (see groups): most links of its files are in merged
// runs.
func (d *Driver) aliases(ctx context.Context, open snapshot.LayerID, j joining) ([]string, error) {
	below, err := d.mounted(open)
	if err != nil {
		return nil, err
	}
	units := append([]unit{{d.dir(open, ""), 1}}, below...)
	view, err := d.viewOf(1, units)
	if err != nil {
		return nil, err
	}
	defer view.close()
	if view.roots[0] == nil {
		return nil, nil
	}
	where, err := d.layersOf(ctx, view, units, j)
	if err != nil || len(where) == 0 {
		return nil, err
	}
	var paths []string
	w := aliasWalk{ctx: ctx, layers: where, inodes: j.lowers, visit: func(path string, _ *entry) error {
		paths = append(paths, path)
		return nil
	}}
	return paths, w.run(view)
}

// mounted are the units that a layer was mounted on, newest first, whatever has
// been merged since: the index names their files.
func (d *Driver) mounted(open snapshot.LayerID) (units []unit, err error) {
	b, err := os.ReadFile(d.dir(open, "below"))
	if err != nil {
		return nil, err
	}
	for name := range strings.FieldsSeq(string(b)) {
		u := unit{d.dir(snapshot.LayerID(name), ""), 1}
		if strings.Contains(name, ".") {
			u.dir = filepath.Join(d.layers, "merged", name)
		}
		units = append(units, u)
	}
	return units, nil
}

// layersOf tells in which layers of the view names may be found: where the names
// in the upper lead to. If there are none, or they were renamed, it may be any.
func (d *Driver) layersOf(ctx context.Context, view *merged, units []unit, j joining) (map[int]bool, error) {
	where, known, below := map[int]bool{}, map[inode]bool{}, view.below()
	w := aliasWalk{ctx: ctx, layers: map[int]bool{0: true}, inodes: j.upper, visit: func(_ string, e *entry) error {
		b, err := below.resolve(e.origin, false)
		if b == nil || err != nil {
			return err
		}
		defer b.close()
		if !j.lowers[inode{b.st.Dev, b.st.Ino}] {
			return nil
		}
		known[inode{e.st.Dev, e.st.Ino}], where[view.split+b.layer] = true, true
		return nil
	}}
	if err := w.run(view); err != nil {
		return nil, err
	}
	for l := 1; l < len(view.roots) && len(known) < len(j.upper); l++ {
		where[l] = view.roots[l] != nil
	}
	for l, u := range units {
		if !where[l] {
			delete(where, l)
			continue
		}
		some, err := d.hasGroups(u, j.lowers)
		if err != nil {
			return nil, err
		}
		if !some {
			delete(where, l)
		}
	}
	return where, nil
}

// hasGroups tells whether a sealed layer has several names for one of the files.
func (d *Driver) hasGroups(u unit, files map[inode]bool) (bool, error) {
	several, err := d.groups(u)
	if err != nil || len(several) == 0 {
		return false, err
	}
	for f := range files {
		if several[f.ino] {
			return true, nil
		}
	}
	return false, nil
}

// An aliasWalk finds the names in some layers of a view that stand for given
// inodes.
type aliasWalk struct {
	ctx    context.Context
	layers map[int]bool
	oldest int
	inodes map[inode]bool
	visit  func(path string, e *entry) error
}

func (w *aliasWalk) run(view *merged) error {
	for l := range w.layers {
		w.oldest = max(w.oldest, l)
	}
	root, err := view.root()
	if err != nil {
		return err
	}
	return w.directory(root, ".")
}

func (w *aliasWalk) directory(e *entry, path string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	match, dirs, err := w.read(e.dir)
	if err != nil {
		return err
	}
	for name := range match {
		if err := w.name(e, name, join(path, name)); err != nil {
			return err
		}
	}
	for name := range dirs {
		sub, err := e.dir.lookup(name, false)
		if err == nil && isDir(sub) && sub.layer <= w.oldest {
			err = w.directory(sub, join(path, name))
		}
		sub.close()
		if err != nil {
			return err
		}
	}
	return nil
}

// read lists the names in a directory that may stand for one of the inodes, and
// those that may be directories.
func (w *aliasWalk) read(m *mdir) (match, dirs map[string]bool, err error) {
	match, dirs = map[string]bool{}, map[string]bool{}
	for _, p := range m.parts {
		if p.layer > w.oldest {
			break
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(p.f.Fd()), &st); err != nil {
			return nil, nil, &fs.PathError{Op: "fstat", Path: p.f.Name(), Err: err}
		}
		err := readDirents(p.f, func(d dirent) {
			if d.kind == unix.DT_DIR || d.kind == unix.DT_UNKNOWN {
				dirs[d.name] = true
			}
			if w.layers[p.layer] && w.inodes[inode{st.Dev, d.ino}] {
				match[d.name] = true
			}
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return match, dirs, nil
}

func (w *aliasWalk) name(dir *entry, name, path string) error {
	e, err := dir.dir.lookup(name, false)
	if e == nil || err != nil {
		return err
	}
	defer e.close()
	if isDir(e) || !w.layers[e.layer] || !w.inodes[inode{e.st.Dev, e.st.Ino}] {
		return nil
	}
	return w.visit(path, e)
}

// A dirent is what a directory says of a name (getdents(2)).
type dirent struct {
	name string
	ino  uint64
	kind uint8
}

func readDirents(dir *os.File, visit func(dirent)) error {
	f, err := openAt(unix.AT_FDCWD, fdName(dir), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(int(f.Fd()), buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "getdents", Path: dir.Name(), Err: err}
		}
		if n == 0 {
			return nil
		}
		for b := buf[:n]; len(b) > 19; {
			length := binary.NativeEndian.Uint16(b[16:])
			name, _, _ := strings.Cut(string(b[19:length]), "\x00")
			if name != "." && name != ".." {
				visit(dirent{name, binary.NativeEndian.Uint64(b), b[18]})
			}
			b = b[length:]
		}
	}
}

// groups are the inodes that have several names in a sealed layer or run. They
// are found once and kept in the file "links" there, which is derived.
func (d *Driver) groups(u unit) (map[uint64]bool, error) {
	if several, ok := d.alone.groupsOf(u.dir); ok {
		return several, nil
	}
	several, err := d.readGroups(u)
	if err == nil {
		d.alone.remember(u.dir, several)
	}
	return several, err
}

func (d *Driver) readGroups(u unit) (map[uint64]bool, error) {
	file := filepath.Join(u.dir, "links")
	if b, err := os.ReadFile(file); err == nil && strings.HasSuffix(string(b), groupsEnd) {
		return parseGroups(string(b)), nil
	}
	root, err := d.openUnit(u)
	if root == nil || err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // O_PATH
	seen, several := map[uint64]bool{}, map[uint64]bool{}
	err = eachName(root, ".", func(_ string, ino uint64) {
		if seen[ino] {
			several[ino] = true
		}
		seen[ino] = true
	})
	if err != nil {
		return nil, err
	}
	return several, writeGroups(file, several)
}

// collectNames finds the names of all files below a directory of one layer.
func collectNames(dir *os.File, path string, names map[uint64][]string) error {
	return eachName(dir, path, func(path string, ino uint64) { names[ino] = append(names[ino], path) })
}

// eachName tells of what is no directory below a directory of one layer. What
// goes away meanwhile is left out.
func eachName(dir *os.File, path string, visit func(path string, ino uint64)) error {
	var subs []string
	err := readDirents(dir, func(d dirent) {
		if d.kind == unix.DT_DIR {
			subs = append(subs, d.name)
		} else {
			visit(join(path, d.name), d.ino)
		}
	})
	for _, name := range subs {
		if err != nil {
			return err
		}
		var sub *os.File
		sub, err = openAt(int(dir.Fd()), name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
		if err == nil {
			err = errors.Join(eachName(sub, join(path, name), visit), sub.Close())
		} else if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			err = nil
		}
	}
	return err
}

// The file ends with a line of its own, so that a torn one is not believed.
const groupsEnd = "end\n"

func parseGroups(s string) map[uint64]bool {
	several := map[uint64]bool{}
	for f := range strings.FieldsSeq(strings.TrimSuffix(s, groupsEnd)) {
		var n uint64
		if _, err := fmt.Sscan(f, &n); err == nil {
			several[n] = true
		}
	}
	return several
}

func writeGroups(file string, several map[uint64]bool) error {
	var b strings.Builder
	for n := range several {
		fmt.Fprintln(&b, n)
	}
	b.WriteString(groupsEnd)
	tmp := file + ".new"
	if err := os.WriteFile(tmp, []byte(b.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}
