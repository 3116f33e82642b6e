package overlay

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// A search is the state of one lookup on its way down the layers, as
// ovl_lookup_data in fs/overlayfs/namei.c.
type search struct {
	v    *merged
	name string // one component, or from the overlay's root with a leading slash
	stop bool   // nothing in lower layers shows
	e    *entry
	meta bool // what has been found is attributes only; the bytes are below
	data bool // the bytes are looked for
	// below is name as it was when the search came to the layers below the
	// split.
	below   string
	crossed bool
}

// lookup finds name in the directory; nil if the view has nothing there. The
// bytes of a metacopy file are looked for if data is set.
func (m *mdir) lookup(name string, data bool) (*entry, error) {
	s := search{v: m.v, name: name, data: data}
	err := s.down(m)
	if err != nil || s.e == nil {
		s.e.close()
		return nil, err
	}
	if !s.crossed {
		s.below = s.name
	}
	s.e.origin = join(m.origin, s.below)
	if strings.HasPrefix(s.below, "/") {
		s.e.origin = m.v.clean(s.below)
	}
	if s.e.dir != nil {
		s.e.dir.origin = s.e.origin
	}
	return s.e, nil
}

func (s *search) down(m *mdir) error {
	next := 0
	for _, p := range m.parts {
		if strings.HasPrefix(s.name, "/") {
			break
		}
		s.cross(p.layer)
		if err := s.single(p.layer, p.f, s.name, 0); err != nil {
			return err
		}
		if s.done() {
			return nil
		}
		next = p.layer + 1
	}
	if !strings.HasPrefix(s.name, "/") {
		return nil
	}
	for i := next; i < len(s.v.roots); i++ { // as an absolute redirect asks
		s.cross(i)
		if s.v.roots[i] == nil {
			continue
		}
		if err := s.walk(i); err != nil {
			return err
		}
		if s.done() {
			return nil
		}
	}
	return nil
}

func (s *search) cross(layer int) {
	if layer >= s.v.split && !s.crossed {
		s.below, s.crossed = s.name, true
	}
}

func (s *search) done() bool {
	return s.stop || s.e != nil && s.e.dir == nil && (!s.meta || !s.data)
}

// walk is ovl_lookup_layer: it follows s.name, absolute, inside one layer. A
// redirect on the way changes the rest of the name for the layers below.
func (s *search) walk(layer int) error {
	at, close := s.v.roots[layer], false
	done := len("/")
	if s.v.name != "" { // the roots are the tree's, one component down
		done = len("/") + len(s.v.name) + len("/")
	}
	for {
		comp, after, more := strings.Cut(s.name[done:], "/")
		var next *os.File
		var err error
		if more {
			next, err = s.step(at, comp, done)
		} else {
			err = s.single(layer, at, comp, done)
		}
		if close && s.e != nil && s.e.parent == at {
			s.e.own = true
		} else if close {
			at.Close() //nolint:errcheck // O_PATH
		}
		if err != nil || next == nil {
			return err
		}
		at, close = next, true
		done = len(s.name) - len(after)
	}
}

// step enters a directory on the way of walk; nil where this layer has none.
func (s *search) step(at *os.File, comp string, done int) (*os.File, error) {
	f, st, err := openEntry(at, comp)
	if f == nil || err != nil {
		return nil, err
	}
	if whiteout(f, &st) || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		s.stop = true
		return nil, f.Close()
	}
	if err := s.readDir(f, comp, done); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// single is ovl_lookup_single for the last component.
func (s *search) single(layer int, at *os.File, comp string, done int) error {
	f, st, readable, err := s.open(at, comp)
	if f == nil || err != nil {
		return err
	}
	if whiteout(f, &st) {
		s.stop = true
		return f.Close()
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return s.file(layer, at, f, readable, &st, comp, done)
	}
	if s.e != nil && s.e.dir == nil { // a directory below a metacopy file
		s.stop = true
		return f.Close()
	}
	if s.e == nil {
		s.e = &entry{f: f, st: st, layer: layer, dir: &mdir{v: s.v}}
	}
	s.e.dir.parts = append(s.e.dir.parts, part{layer, f})
	return s.readDir(f, comp, done)
}

// file takes a non-directory: the entry itself, or the bytes of one found
// above.
func (s *search) file(layer int, at, f *os.File, readable bool, st *unix.Stat_t, comp string, done int) error {
	if s.e != nil && s.e.dir != nil { // hidden by a directory above
		s.stop = true
		return f.Close()
	}
	regular, meta := st.Mode&unix.S_IFMT == unix.S_IFREG, false
	if regular && layer < len(s.v.roots)-1 {
		m, err := xattr(f, private+"metacopy")
		if err != nil {
			closeAll(f)
			return err
		}
		meta = m != nil
	}
	var r *os.File
	if readable && !meta { // else its bytes are elsewhere
		r = f
	}
	switch {
	case s.e == nil:
		s.e = &entry{f: f, st: *st, layer: layer, parent: at, name: comp, meta: meta, reader: r}
	case !meta:
		s.e.data, s.e.dataLayer, s.e.reader = f, layer, r
	default:
		defer f.Close() //nolint:errcheck // O_PATH
	}
	s.meta = meta
	if !meta {
		return nil
	}
	return s.redirect(f, comp, done)
}

// open is openEntry, but opens a regular file for reading in a view whose files are to
// be read, if it can.
func (s *search) open(at *os.File, name string) (f *os.File, st unix.Stat_t, readable bool, err error) {
	if s.v.reads && s.data {
		err := unix.Fstatat(int(at.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			return nil, st, false, nil
		}
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			f, err := openAt(int(at.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME)
			if err == nil && unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG { // still
				return f, st, true, nil
			}
			closeAll(f)
		}
	}
	f, st, err = openEntry(at, name)
	return f, st, false, err
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close() //nolint:errcheck // nothing was written
		}
	}
}

// readDir takes what a directory's own attributes say of the layers below.
func (s *search) readDir(f *os.File, comp string, done int) error {
	o, err := xattr(f, private+"opaque")
	if err != nil {
		return err
	}
	if string(o) == "y" {
		s.stop = true
		return nil
	}
	return s.redirect(f, comp, done)
}

// redirect is ovl_check_redirect: the component at done becomes another name,
// or everything up to it another path.
func (s *search) redirect(f *os.File, comp string, done int) error {
	r, err := xattr(f, private+"redirect")
	if err != nil || len(r) == 0 {
		return err
	}
	post := s.name[done+len(comp):]
	if r[0] == '/' {
		s.stop = false // an opaque directory on the way does not hide what is elsewhere
		s.name = string(r) + post
	} else {
		s.name = s.name[:done] + string(r) + post
	}
	return nil
}

// openEntry opens a name in a layer's directory without following it; a nil
// file where there is none.
func openEntry(at *os.File, name string) (*os.File, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := unix.Openat(int(at.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil, st, nil
	}
	if err != nil {
		return nil, st, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, st, errors.Join(&fs.PathError{Op: "fstat", Path: name, Err: err}, f.Close())
	}
	return f, st, nil
}

// whiteout tells a removal: a 0/0 character device, or an empty file with the
// attribute (overlayfs.rst, "whiteouts and opaque directories").
func whiteout(f *os.File, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		if st.Size != 0 {
			return false
		}
		v, err := xattr(f, private+"whiteout")
		return err == nil && v != nil
	}
	return false
}
