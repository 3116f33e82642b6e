package session

import (
	"slices"
	"strings"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// What is mounted below the tree belongs to another filesystem: no snapshot covers
// it, and no rollback changes what is in it, or whether it is mounted.

// uncovered lists the mounts below the tree, by path. Where there are none it costs
// a microsecond.
func (s *Session) uncovered() (out []snapshot.Mount) {
	list, err := mounts.Below(s.o.Tree.Path)
	if err != nil {
		s.o.Warn("what is mounted below the tree cannot be told: " + err.Error())
	}
	for _, m := range list {
		out = append(out, snapshot.Mount{Path: m.Mountpoint, Type: m.FSType, Source: m.Source, Root: m.Root})
	}
	slices.SortStableFunc(out, func(a, b snapshot.Mount) int { return strings.Compare(a.Path, b.Path) })
	return out
}

// changed marks what was mounted between two looks, and adds what was unmounted.
func changed(before, after []snapshot.Mount) []snapshot.Mount {
	out := slices.Clone(after)
	for i := range out {
		if !slices.Contains(before, out[i]) {
			out[i].Change = snapshot.Mounted
		}
	}
	for _, m := range before {
		if !slices.Contains(after, m) {
			m.Change = snapshot.Unmounted
			out = append(out, m)
		}
	}
	return out
}
