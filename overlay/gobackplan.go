package overlay

import (
	"bytes"
	"cmp"
	"errors"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A backStep is one change that was made in the new view. Paths are as there, but
// From, and what is removed, as they were below it.
type backStep struct {
	Path string
	Kind snapshot.ChangeKind
	Type snapshot.FileType
	From string // it is what was here
	Old  string // where what is at Path was below; Path, but inside what was moved
	// Free: what the old view has there is what the new one saw.
	Free bool
	File bool // a regular file that both views have
	Seen seen
}

// seen is what the old view has of a regular file.
type seen struct {
	Same  bool // the new view's is the same file, copied up
	Whole bool // nobody has written to it since it was, but perhaps in the same tick of the clock
	Sure  bool // nor then
	Size  int64
	Mtime unix.Timespec
}

// plan lists what the new layer changes, parents first.
func (g *goBack) plan() ([]backStep, error) {
	var changes []snapshot.Change
	err := g.d.changes(g.ctx, g.note.Below, []snapshot.LayerID{g.open}, asked{renames: true}, func(c snapshot.Change) error {
		changes = append(changes, c)
		return nil
	})
	if err != nil || len(changes) == 0 {
		return nil, err
	}
	p := planning{moved: map[string]bool{}}
	if p.after, err = g.d.view(g.note.Below, []snapshot.LayerID{g.open}); err != nil {
		return nil, err
	}
	defer p.after.close()
	if p.old, err = g.oldView(); err != nil {
		return nil, err
	}
	defer p.old.close()
	for _, c := range changes {
		if err := p.add(c); err != nil {
			return nil, err
		}
	}
	p.steps = slices.DeleteFunc(p.steps, func(s backStep) bool { // it is not gone
		return s.Kind == snapshot.ChangeDeleted && p.moved[s.Old]
	})
	return p.steps, nil
}

// oldView reads the layers of the view that comes back, the live one included.
func (g *goBack) oldView() (*merged, error) {
	stood, err := g.d.standsOn(g.note.To)
	if err != nil {
		return nil, err
	}
	units := []unit{{g.d.dir(g.note.To, ""), 1}}
	for _, u := range stood {
		units = append(units, u.unit)
	}
	return g.d.viewOf(0, units)
}

type planning struct {
	after, old *merged
	steps      []backStep
	dirs       []backStep // those of them that move a directory
	moved      map[string]bool
}

// before is a path as it was below the new layer.
func (p *planning) before(path string) string {
	for _, s := range slices.Backward(p.dirs) {
		if rest, ok := strings.CutPrefix(path, s.Path+"/"); ok {
			return join(s.From, rest)
		}
	}
	return path
}

func (p *planning) add(c snapshot.Change) error {
	s := backStep{Path: c.Path, Kind: c.Kind, Type: c.Type, From: c.From, Old: p.before(c.Path)}
	e, err := p.after.resolve(c.Path, true)
	if err != nil {
		return err
	}
	defer e.close()
	if e != nil && e.dir == nil && e.meta && e.data != nil && e.dataLayer >= p.after.split && e.origin != s.Old {
		s.From = e.origin // renamed, and not opened
	}
	at := cmp.Or(s.From, s.Old)
	was, err := p.after.below().resolve(at, false)
	if err != nil {
		return err
	}
	defer was.close()
	old, err := p.old.resolve(at, false)
	if err != nil {
		return err
	}
	defer old.close()
	s.Free = old == nil || isDir(was) && isDir(old) || was != nil && sameInode(was.f, old.f)
	if s.File = e != nil && old != nil && fileType(e) == snapshot.TypeFile && fileType(old) == snapshot.TypeFile; s.File {
		s.Seen, err = look(e, old)
	}
	p.steps = append(p.steps, s)
	if s.From != "" {
		p.moved[s.From] = true
	}
	if s.From != "" && s.Type == snapshot.TypeDir {
		p.dirs = append(p.dirs, s)
	}
	return err
}

// look compares a file of the new layer with what the old view has there.
func look(e, old *entry) (s seen, err error) {
	s.Size, s.Mtime = old.st.Size, old.st.Mtim
	if s.Same, err = copiedUp(e, old); err != nil {
		return s, err
	}
	st, err := statxAt(int(e.f.Fd()), "")
	if err != nil {
		return s, err
	}
	if st.Mask&unix.STATX_BTIME != 0 { // when it was copied up
		when := compareTimes(s.Mtime, stampOf(st.Btime))
		s.Whole, s.Sure = when <= 0, when < 0
	}
	return s, nil
}

func compareTimes(t unix.Timespec, s stamp) int {
	return cmp.Or(cmp.Compare(t.Sec, s.Sec), cmp.Compare(t.Nsec, int64(s.Nsec)))
}

// copiedUp tells whether e was made of old: overlayfs notes a handle of the file that
// it copied up (struct ovl_fb). On a filesystem without handles any may have been.
func copiedUp(e, old *entry) (bool, error) {
	h, _, err := unix.NameToHandleAt(int(old.f.Fd()), "", unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	o, err := xattr(e.f, private+"origin")
	if len(o) <= handleHead || err != nil {
		return false, err
	}
	of := lowerHandle(o)
	return of.Type() == h.Type() && bytes.Equal(of.Bytes(), h.Bytes()), nil
}
