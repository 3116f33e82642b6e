package overlay

import (
	"os"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// A reach is a way to base and to the layers, past what is mounted over base.
// Where both lie on one filesystem it leads through one mount, for the kernel
// links and renames within a mount only (link(2), EXDEV).
type reach struct {
	held   []*os.File // what base and layers are reached through
	base   *os.File   // O_PATH, the tree's root in base
	layers string     // a path to the layers
	joined bool       // through one mount
}

func (r *reach) close() {
	for _, f := range append(r.held, r.base) {
		f.Close() //nolint:errcheck // O_PATH
	}
}

// reach opens a way. Where no mount holds both, files will have to be copied.
func (d *Driver) reach() (*reach, error) {
	base, err := d.openBase()
	if err != nil {
		return nil, err
	}
	r := &reach{base: base, layers: d.layers}
	at, suffix := d.base(), d.name
	if d.name == "" {
		bound, err := d.baseBound()
		if err != nil {
			r.close()
			return nil, err
		}
		if !bound {
			at = d.tree
		}
	}
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return r, nil
	}
	b, ok := placeOf(all, at)
	l, found := placeOf(all, d.layers)
	if !ok || !found || b.dev != l.dev {
		return r, nil
	}
	b.path = filepath.Join(b.path, suffix)
	for _, m := range all {
		if placeIn(m, b) && placeIn(m, l) && r.join(m, b, l) {
			break
		}
	}
	return r, nil
}

// A place is a directory by its filesystem and its path there.
type place struct {
	dev  uint64
	path string
}

func device(m *mountinfo.Info) uint64 { return unix.Mkdev(uint32(m.Major), uint32(m.Minor)) }

func placeOf(all []*mountinfo.Info, path string) (place, bool) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return place{}, false
	}
	id, err := mounts.ID(path)
	if err != nil {
		return place{}, false
	}
	on := find(all, id)
	if on == nil {
		return place{}, false
	}
	rel, err := filepath.Rel(on.Mountpoint, path)
	return place{device(on), filepath.Join(on.Root, rel)}, err == nil
}

func placeIn(m *mountinfo.Info, p place) bool { return device(m) == p.dev && within(p.path, m.Root) }

// join tries to reach both through one mount. It takes nothing on trust: what
// it finds must be the directories that are meant.
func (r *reach) join(m *mountinfo.Info, base, layers place) bool {
	if id, err := mounts.ID(m.Mountpoint); err != nil || id != m.ID {
		return false // covered by another mount
	}
	clone, err := openTree(unix.AT_FDCWD, m.Mountpoint, unix.OPEN_TREE_CLONE)
	if err != nil {
		return false
	}
	b, errb := openIn(clone, m.Root, base.path)
	l, errl := openIn(clone, m.Root, layers.path)
	if errb == nil && errl == nil && sameFile(fdName(b), fdName(r.base)) && sameFile(fdName(l), r.layers) {
		r.base.Close() //nolint:errcheck // O_PATH
		r.held, r.base, r.layers, r.joined = []*os.File{clone, l}, b, fdName(l), true
		return true
	}
	for _, f := range []*os.File{clone, b, l} {
		if f != nil {
			f.Close() //nolint:errcheck // O_PATH
		}
	}
	return false
}

func openIn(clone *os.File, root, path string) (*os.File, error) {
	rel, err := filepath.Rel(root, path)
	if err != nil {
		return nil, err
	}
	return openAt(int(clone.Fd()), rel, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	return err == nil, ignoreMissing(err)
}

func sameFile(a, b string) bool {
	x, errx := os.Stat(a)
	y, erry := os.Stat(b)
	return errx == nil && erry == nil && os.SameFile(x, y)
}

// viewBy is view with layers, which are the change, and base reached by r. It
// lives as long as r does.
func (d *Driver) viewBy(r *reach, layers []snapshot.LayerID) (v *merged, err error) {
	v = &merged{name: d.name}
	units := d.units(layers)
	v.split = len(units)
	for _, u := range units {
		f, err := d.openUnit(unit{dir: r.place(d, u.dir), n: u.n})
		if err != nil {
			v.close()
			return nil, err
		}
		v.roots = append(v.roots, f)
	}
	base, err := openAt(int(r.base.Fd()), ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		v.close()
		return nil, err
	}
	v.roots = append(v.roots, base)
	return v, nil
}

// place is a path below the layers, as r reaches it.
func (r *reach) place(d *Driver, path string) string {
	rel, err := filepath.Rel(d.layers, path)
	if err != nil {
		return path
	}
	return filepath.Join(r.layers, rel)
}
