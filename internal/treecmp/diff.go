package treecmp

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Options leave differences out. The zero value leaves nothing out.
type Options struct {
	// AnyGroups and AnyNlink leave out which names are one file, and how many
	// names it says it has: links in other layers count, too.
	AnyGroups bool
	AnyNlink  bool
	// HoleSlack is by how many bytes the holes of two files may differ: copying
	// with a large block fills small holes.
	HoleSlack int64
	// WantTime and GotTime translate modification times before they are
	// compared, so that two trees which took the same operations at different
	// moments can be equal. Nil leaves them as they are.
	WantTime func(ns int64) int64
	GotTime  func(ns int64) int64
}

// Difference is one thing that is not the same in two pictures.
type Difference struct {
	Path  string
	Field string // "entry" when the path is in one picture only
	Want  string // "" for an entry that should not be there
	Got   string // "" for an entry that is missing
}

// String is one line, the path quoted.
func (d Difference) String() string {
	switch {
	case d.Field == "entry" && d.Got == "":
		return fmt.Sprintf("- %q is missing: %s", d.Path, d.Want)
	case d.Field == "entry":
		return fmt.Sprintf("+ %q should not be there: %s", d.Path, d.Got)
	}
	return fmt.Sprintf("! %q %s: want %s, got %s", d.Path, d.Field, d.Want, d.Got)
}

// Differences are in order of path.
type Differences []Difference

// maxLines bounds what String prints: what comes after seldom says more.
const maxLines = 40

// String is one line a difference, the first forty of them.
func (d Differences) String() string {
	var b strings.Builder
	for i, one := range d {
		if i == maxLines {
			fmt.Fprintf(&b, "\n… and %d more", len(d)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(one.String())
	}
	return b.String()
}

// Diff tells in what got differs from want.
func Diff(want, got Picture, o Options) Differences {
	all := maps.Clone(want)
	maps.Copy(all, got)
	var ds Differences
	for _, path := range all.Paths() {
		w, inWant := want[path]
		g, inGot := got[path]
		switch {
		case !inGot:
			ds = append(ds, Difference{path, "entry", w.String(), ""})
		case !inWant:
			ds = append(ds, Difference{path, "entry", "", g.String()})
		default:
			ds = append(ds, o.entry(path, w, g)...)
		}
	}
	return ds
}

// entry compares two entries. When the types differ nothing else is worth
// telling.
func (o Options) entry(path string, w, g Entry) (ds Differences) {
	add := func(field string, want, got any) {
		ds = append(ds, Difference{path, field, fmt.Sprint(want), fmt.Sprint(got)})
	}
	if w.Type != g.Type {
		add("type", string(w.Type), string(g.Type))
		return ds
	}
	if w.Mode != g.Mode {
		add("mode", fmt.Sprintf("%04o", w.Mode), fmt.Sprintf("%04o", g.Mode))
	}
	if w.UID != g.UID || w.GID != g.GID {
		add("owner", fmt.Sprintf("%d:%d", w.UID, w.GID), fmt.Sprintf("%d:%d", g.UID, g.GID))
	}
	if translate(o.WantTime, w.Mtime) != translate(o.GotTime, g.Mtime) {
		add("mtime", stamp(o.WantTime, w.Mtime), stamp(o.GotTime, g.Mtime))
	}
	if w.Flags != g.Flags {
		add("flags", fmt.Sprintf("%#x", w.Flags), fmt.Sprintf("%#x", g.Flags))
	}
	if !maps.Equal(w.Xattrs, g.Xattrs) {
		add("xattrs", attrs(w.Xattrs), attrs(g.Xattrs))
	}
	return append(ds, o.contents(path, w, g)...)
}

func (o Options) contents(path string, w, g Entry) (ds Differences) {
	add := func(field string, want, got any) {
		ds = append(ds, Difference{path, field, fmt.Sprint(want), fmt.Sprint(got)})
	}
	if w.Size != g.Size {
		add("size", w.Size, g.Size)
	}
	if w.Sum != g.Sum {
		add("contents", w.Sum, g.Sum)
	}
	if w.Target != g.Target {
		add("target", fmt.Sprintf("%q", w.Target), fmt.Sprintf("%q", g.Target))
	}
	if w.Rdev != g.Rdev {
		add("device", fmt.Sprintf("%#x", w.Rdev), fmt.Sprintf("%#x", g.Rdev))
	}
	if max(w.Holes-g.Holes, g.Holes-w.Holes) > o.HoleSlack {
		add("bytes in holes", w.Holes, g.Holes)
	}
	if !o.AnyNlink && w.Nlink != g.Nlink {
		add("link count", w.Nlink, g.Nlink)
	}
	if !o.AnyGroups && w.Group != g.Group {
		add("hard link with", fmt.Sprintf("%q", w.Group), fmt.Sprintf("%q", g.Group))
	}
	return ds
}

func translate(f func(int64) int64, ns int64) int64 {
	if f == nil {
		return ns
	}
	return f(ns)
}

func stamp(f func(int64) int64, ns int64) string {
	at := time.Unix(0, ns).UTC().Format("2006-01-02T15:04:05.999999999")
	if t := translate(f, ns); t != ns {
		return fmt.Sprintf("%s (step %d)", at, t)
	}
	return at
}

// String is a line like that of ls -l, without the name.
func (e Entry) String() string {
	s := fmt.Sprintf("%c %04o %d:%d %d bytes %s", e.Type, e.Mode, e.UID, e.GID, e.Size, stamp(nil, e.Mtime))
	if e.Target != "" {
		s += fmt.Sprintf(" -> %q", e.Target)
	}
	if e.Rdev != 0 || e.Type == 'c' || e.Type == 'b' {
		s += fmt.Sprintf(" dev %#x", e.Rdev)
	}
	if len(e.Xattrs) > 0 {
		s += " " + attrs(e.Xattrs)
	}
	return s
}

func attrs(m map[string]string) string {
	var b strings.Builder
	b.WriteByte('{')
	for i, name := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteByte(' ')
		}
		v := m[name]
		if len(v) > 64 {
			v = fmt.Sprintf("%s… (%d bytes)", v[:64], len(v))
		}
		fmt.Fprintf(&b, "%s=%q", name, v)
	}
	b.WriteByte('}')
	return b.String()
}
