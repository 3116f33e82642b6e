package session

import (
	"path"
	"slices"

	"deployx/snapshot"
)

// collisions names, in order, the paths that others changed and that cannot be
// kept when undone is taken back: both touched the same path, or what one of
// them did decides whether the other's path is there at all. Both lists are as
// snapshot.Driver.Changes tells them, so that what overlayfs notes in a layer
// (removals, opaque directories, redirects, metacopy, directories that were
// only copied up) has been resolved; neither need be a net change, and their
// order does not matter. No answer means that the state with others' paths as
// they are now and all else as it was before undone exists and is the only one.
//
//   - The same path on both sides collides, whatever happened to it. The time of
//     a directory is no change and never told, so two who put files into one
//     directory do not collide, nor does one who puts a file there with one who
//     changed the directory's mode.
//   - A path below one that undone added, removed, moved or made another type
//     collides: its place comes or goes. A renamed directory stands at both ends
//     for all that is below.
//   - Undone changes below something that others removed, moved or made another
//     type collide too. Below a directory that others added they do not: the
//     directory stays, without them.
func collisions(undone, others []snapshot.Change) []string {
	u, o := footprintOf(undone, true), footprintOf(others, false)
	var paths []string
	for p := range o.touched {
		if u.touched[p] || u.covers(p) {
			paths = append(paths, p)
		}
	}
	for p := range u.touched {
		paths = append(paths, o.above(p)...)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// A footprint is where a list of changes has been.
type footprint struct {
	touched map[string]bool // every path that a change names
	decided map[string]bool // those of which all that is below depends on them
}

// footprintOf takes the paths of changes; added tells whether a directory that
// was added decides on what is below it.
func footprintOf(changes []snapshot.Change, added bool) footprint {
	f := footprint{map[string]bool{}, map[string]bool{}}
	for _, c := range changes {
		f.touched[c.Path] = true
		switch c.Kind {
		case snapshot.ChangeAdded:
			f.decided[c.Path] = f.decided[c.Path] || added
		case snapshot.ChangeDeleted, snapshot.ChangeType:
			f.decided[c.Path] = true
		case snapshot.ChangeRenamed:
			f.decided[c.Path] = true
			f.touched[c.From], f.decided[c.From] = true, true
		}
	}
	return f
}

// covers tells whether a directory above p decides on it.
func (f footprint) covers(p string) bool { return len(f.above(p)) > 0 }

// above are the directories above p that decide on it.
func (f footprint) above(p string) (dirs []string) {
	for p != "." {
		if p = path.Dir(p); f.decided[p] {
			dirs = append(dirs, p)
		}
	}
	return dirs
}
