package snapshottest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// ignoreUnsupported forgives a file system that has no inode flags.
func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// checkChanges compares what the driver says that layers changed on top of
// below with the difference of the two pictures.
func (r *rig) checkChanges(below, layers []snapshot.LayerID) {
	r.t.Helper()
	before, after := r.states[key(below)], r.states[key(slices.Concat(below, layers))]
	if before == nil || after == nil {
		r.t.Fatalf("no picture of %v or of %v on top", below, layers)
	}
	got, err := changes(r.ctx(), r.d, below, layers)
	r.must("Changes", err)
	if wrong := wrongChanges(before.tree, after.tree, got, r.plain.splits); wrong != "" {
		r.t.Fatalf("Changes from %s to %s:\n%s", r.names(below), r.names(slices.Concat(below, layers)), wrong)
	}
	d, ok := r.d.(snapshot.Renamer)
	if !ok {
		return
	}
	got = nil
	r.must("ChangesByPath", d.ChangesByPath(r.ctx(), below, layers, into(&got)))
	wrong := wrongChanges(before.tree, after.tree, got, r.plain.splits)
	if wrong != "" || slices.ContainsFunc(got, func(c snapshot.Change) bool { return c.Kind == snapshot.ChangeRenamed }) {
		r.t.Fatalf("ChangesByPath from %s to %s:\n%s\n%v", r.names(below), r.names(slices.Concat(below, layers)), wrong, got)
	}
}

func changes(ctx context.Context, d snapshot.Driver, below, layers []snapshot.LayerID) ([]snapshot.Change, error) {
	var all []snapshot.Change
	err := d.Changes(ctx, below, layers, into(&all))
	return all, err
}

func into(all *[]snapshot.Change) func(snapshot.Change) error {
	return func(c snapshot.Change) error {
		*all = append(*all, c)
		return nil
	}
}

// wrongChanges tells what is wrong with a driver's list of changes, "" if
// nothing. A renamed directory may be told as such, or as what is gone and what
// is new. splits tells that the driver takes groups of hard links apart.
func wrongChanges(before, after treecmp.Picture, got []snapshot.Change, splits bool) string {
	var wrong []string
	if !slices.IsSortedFunc(got, func(a, b snapshot.Change) int { return cmp.Compare(a.Path, b.Path) }) {
		wrong = append(wrong, "not in byte order of path")
	}
	moved, renames := move(before, got)
	all := map[string]snapshot.Change{}
	for _, c := range got {
		if c.SplitLink {
			wrong = append(wrong, wrongSplit(moved, after, c, splits)...)
			c.SplitLink = false
		}
		if _, twice := all[c.Path]; twice {
			wrong = append(wrong, fmt.Sprintf("%q is told twice", c.Path))
		}
		all[c.Path] = c
		if c.Kind == snapshot.ChangeRenamed {
			wrong = append(wrong, wrongRename(before, after, c)...)
		}
	}
	want := difference(moved, after)
	for _, path := range slices.Sorted(maps.Keys(union(want, all))) {
		wrong = append(wrong, wrongChange(path, want, all, renames)...)
	}
	for _, c := range got {
		if len(wrong) > 0 && c.Kind == snapshot.ChangeRenamed {
			wrong = append(wrong, "(with "+told(c)+")")
		}
	}
	return strings.Join(wrong, "\n")
}

func union(a, b map[string]snapshot.Change) map[string]snapshot.Change {
	u := maps.Clone(a)
	maps.Copy(u, b)
	return u
}

// wrongChange compares one path. What a renamed directory's own attributes did
// is part of its renaming. What mayTell marks may be left out.
func wrongChange(path string, want, all map[string]snapshot.Change, renamed map[string]bool) []string {
	w, wanted := want[path]
	g, got := all[path]
	switch {
	case renamed[path] && (!wanted || w.Kind == snapshot.ChangeMetadata || w.Kind == mayTell):
		return nil
	case w.Kind == mayTell && !got:
		return nil
	case w.Kind == mayTell:
		w.Kind = snapshot.ChangeMetadata
	case !wanted:
		return []string{fmt.Sprintf("+ told, but not so: %s", told(g))}
	case !got:
		return []string{fmt.Sprintf("- not told: %s", told(w))}
	}
	if w.Type == snapshot.TypeDir {
		g.Size = 0
	}
	if w != g {
		return []string{fmt.Sprintf("! %q:\n   want %s\n   got  %s", path, told(w), told(g))}
	}
	return nil
}

// wrongSplit checks that what is said to have come apart was one file with others,
// there or where it was moved from.
func wrongSplit(before, after treecmp.Picture, c snapshot.Change, splits bool) []string {
	was := before[c.Path].Group != ""
	for path, e := range before {
		_, there := after[path]
		was = was || e.Group != "" && !there
	}
	if splits && c.Type == snapshot.TypeFile && was {
		return nil
	}
	return []string{fmt.Sprintf("told to have come apart from others: %s", told(c))}
}

func told(c snapshot.Change) string {
	s := fmt.Sprintf("%s %q type %s%s mode %04o owner %d:%d size %d", c.Kind, c.Path, c.Was, c.Type, c.Mode, c.UID, c.GID, c.Size)
	if c.From != "" {
		s += fmt.Sprintf(" from %q", c.From)
	}
	return s
}

// wrongRename checks that a directory went from From to Path.
func wrongRename(before, after treecmp.Picture, c snapshot.Change) (wrong []string) {
	if before[c.From].Type != 'd' || after[c.Path].Type != 'd' {
		wrong = append(wrong, fmt.Sprintf("%q was not a directory that was renamed to %q", c.From, c.Path))
	}
	if w := changeOf(c.Path, snapshot.ChangeRenamed, after[c.Path]); w.Mode != c.Mode || w.UID != c.UID || w.GID != c.GID || c.Type != w.Type {
		wrong = append(wrong, fmt.Sprintf("attributes of renamed %q: want %s, got %s", c.Path, told(w), told(c)))
	}
	return wrong
}

// move gives the picture before, with the directories that the driver says
// were renamed already in their new places, and those places. What moves in
// replaces what was there; where two move to one place, the one that was
// renamed itself does so over one that came along with its parent.
func move(before treecmp.Picture, got []snapshot.Change) (treecmp.Picture, map[string]bool) {
	to, places := map[string]string{}, map[string]bool{}
	for _, c := range got {
		if c.Kind == snapshot.ChangeRenamed {
			to[c.From], places[c.Path] = c.Path, true
		}
	}
	moved, rank := treecmp.Picture{}, map[string]int{}
	for path, e := range before {
		p, along := place(path, to)
		if r, taken := rank[p]; !taken || along < r {
			moved[p], rank[p] = e, along
		}
	}
	return moved, places
}

// place is where path goes when the directories in to are renamed: the deepest
// of them that holds it decides. along is how much of the path came along, all
// of it and more when nothing was renamed.
func place(path string, to map[string]string) (p string, along int) {
	for dir := path; ; {
		if p, ok := to[dir]; ok {
			return p + path[len(dir):], len(path) - len(dir)
		}
		i := strings.LastIndexByte(dir, '/')
		if i < 0 {
			return path, len(path) + 1
		}
		dir = dir[:i]
	}
}

// mayTell marks what a driver may tell as metadata and need not: a directory of
// which only the time differs has another list of names, and inode flags are not
// among what a Change tells.
const mayTell snapshot.ChangeKind = "metadata, if told"

// difference is what changed between two pictures, by path.
func difference(before, after treecmp.Picture) map[string]snapshot.Change {
	all := map[string]snapshot.Change{}
	for path, b := range before {
		a, still := after[path]
		switch {
		case !still:
			all[path] = changeOf(path, snapshot.ChangeDeleted, b)
		case kindOf(b, a) != "":
			c := changeOf(path, kindOf(b, a), a)
			if c.Kind == snapshot.ChangeType {
				c.Was = snapshot.FileType(b.Type)
			}
			all[path] = c
		}
	}
	for path, a := range after {
		if _, was := before[path]; !was {
			all[path] = changeOf(path, snapshot.ChangeAdded, a)
		}
	}
	return all
}

func kindOf(b, a treecmp.Entry) snapshot.ChangeKind {
	sameTime := b.Mtime == a.Mtime
	b.Mtime = a.Mtime
	switch {
	case b.Type != a.Type:
		return snapshot.ChangeType
	case b.Size != a.Size || b.Sum != a.Sum || b.Target != a.Target || b.Rdev != a.Rdev:
		return snapshot.ChangeModified
	case b.Mode != a.Mode || b.UID != a.UID || b.GID != a.GID || !maps.Equal(b.Xattrs, a.Xattrs):
		return snapshot.ChangeMetadata
	case !sameTime && a.Type != 'd':
		return snapshot.ChangeMetadata
	case !sameTime || b.Flags != a.Flags:
		return mayTell
	}
	return ""
}

func changeOf(path string, kind snapshot.ChangeKind, e treecmp.Entry) snapshot.Change {
	return snapshot.Change{
		Path: path, Kind: kind, Type: snapshot.FileType(e.Type),
		Mode: e.Mode, UID: e.UID, GID: e.GID, Size: e.Size,
	}
}

// checkState reads a state's files through the driver and compares them, and
// what its layers changed together.
func (r *rig) checkState(s *state) {
	r.t.Helper()
	if len(s.layers) > 0 {
		r.checkChanges(nil, s.layers)
		r.checkChanges(s.layers[:len(s.layers)-1], s.layers[len(s.layers)-1:])
	}
	for path, e := range s.tree {
		if e.Type == 'f' && e.Size <= maxRead || e.Type == 'l' {
			r.checkOpen(s.layers, path, e)
		}
	}
}

// maxRead is the largest file that checkOpen reads, in bytes: a longer one is a
// hole for the most part.
const maxRead = 16 << 20

func (r *rig) checkOpen(layers []snapshot.LayerID, path string, e treecmp.Entry) {
	r.t.Helper()
	f, err := r.d.Open(r.ctx(), layers, path)
	if err != nil {
		r.t.Fatalf("Open %q: %v", path, err)
	}
	want, got := e.Sum, ""
	if e.Type == 'l' {
		var b []byte
		b, err = io.ReadAll(f)
		want, got = e.Target, string(b)
	} else {
		got, err = treecmp.Sum(f)
	}
	r.must("read what Open gave", errors.Join(err, f.Close()))
	if got != want {
		r.t.Fatalf("Open %q of %d layers: want contents %q, got %q", path, len(layers), want, got)
	}
}
