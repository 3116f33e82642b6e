package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A file of which only the attributes were copied up notes which file it was copied
// from. With an index the kernel shows nothing at its name where the layers below have
// another file there (ovl_lookup, ovl_verify_origin: ESTALE, and readdir leaves it
// out). Without the note it takes what is there.

// loosen takes that note from the files of the shown open layer: base is about to get
// other files.
func (d *Driver) loosen(ctx context.Context) error {
	open, err := d.Shown(ctx)
	if err != nil || open == "" || d.name == "" {
		return err
	}
	root, err := d.openUnit(unit{d.dir(open, ""), 1})
	if root == nil || err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // O_PATH
	var errs []error
	err = eachName(root, ".", func(path string, _ uint64) {
		f, err := openBelow(root, path, unix.O_PATH)
		if missing(err) { // it went meanwhile
			return
		}
		if err != nil {
			errs = append(errs, err)
			return
		}
		defer f.Close() //nolint:errcheck // O_PATH
		meta, err := xattr(f, private+"metacopy")
		if meta != nil {
			err = dropOrigin(f)
		}
		errs = append(errs, err)
	})
	return errors.Join(append(errs, err)...)
}

// loosenStale takes it from the files of an open layer that is to be mounted on layers
// (oldest first) where the note is not true. It was mounted on others: what was
// committed, folded or merged since is there, in files of base, of the floor or of a run.
func (d *Driver) loosenStale(open snapshot.LayerID, layers []snapshot.LayerID) error {
	if d.name == "" {
		return nil // no index
	}
	view, err := d.viewOf(1, []unit{{d.dir(open, ""), 1}}, d.units(layers))
	if err != nil {
		return err
	}
	defer view.close()
	root, err := view.root()
	if err != nil {
		return err
	}
	if err := loosenIn(root, view.below()); err != nil {
		return err
	}
	return d.unindex(open)
}

// unindex takes files without that note out of the index of an open layer that is not
// mounted: with them the kernel mounts it without an index only (ovl_verify_index).
func (d *Driver) unindex(open snapshot.LayerID) error {
	names, err := readNames(d.indexDir(open))
	if err != nil || len(names) == 0 {
		return err
	}
	dir, err := openDir(d.indexDir(open))
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // O_PATH
	for _, name := range names {
		t := target{dir, name}
		if meta, _ := t.refers(); !meta || t.has("origin") {
			continue
		}
		if err := t.removeXattr(private + "nlink"); err != nil {
			return err
		}
		if err := t.remove(); err != nil {
			return err
		}
	}
	return nil
}

// loosenIn does so in a directory of the view, and below.
func loosenIn(dir *entry, below *merged) error {
	if dir.layer != 0 {
		return nil
	}
	f, err := openAt(int(dir.f.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read only
	names, err := f.ReadDir(-1)
	for _, n := range names {
		if err != nil {
			return err
		}
		if !n.IsDir() && !n.Type().IsRegular() {
			continue
		}
		if meta, _ := (target{f, n.Name()}).refers(); n.IsDir() || meta {
			err = loosenName(dir, n.Name(), below)
		}
	}
	return err
}

func loosenName(dir *entry, name string, below *merged) error {
	e, err := dir.dir.lookup(name, false)
	if err != nil {
		return err
	}
	defer e.close()
	if isDir(e) {
		return loosenIn(e, below)
	}
	origin, err := xattr(e.f, private+"origin")
	if err != nil || origin == nil {
		return err
	}
	from, err := below.resolve(e.origin, false)
	if err != nil {
		return err
	}
	defer from.close()
	if from != nil {
		if same, err := copiedUp(e, from); same || err != nil {
			return err
		}
	}
	return dropOrigin(e.f)
}

func dropOrigin(f *os.File) error {
	err := unix.Removexattr(fdName(f), private+"origin")
	if err != nil && !errors.Is(err, unix.ENODATA) {
		return &fs.PathError{Op: "removexattr", Path: f.Name(), Err: err}
	}
	return nil
}
