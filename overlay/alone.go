package overlay

import (
	"slices"
	"sync"

	"deployx/snapshot"
)

// Most files of lower layers with more than one link are shared by their layer and
// the runs that it was merged into, and have no other name. Each unit's groups, which
// are known, tell that, and spare the search of aliases.

// alone are the entries of an open layer's index of which that has been found.
type alone struct {
	mu    sync.Mutex
	open  snapshot.LayerID
	names map[string]bool

	groups map[string]map[uint64]bool // by unit, which never change; see Driver.groups
}

// groupsMost bounds what is remembered.
const groupsMost = 256

func (a *alone) remember(dir string, several map[uint64]bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.groups == nil || len(a.groups) >= groupsMost {
		a.groups = map[string]map[uint64]bool{}
	}
	a.groups[dir] = several
}

func (a *alone) groupsOf(dir string) (several map[uint64]bool, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	several, ok = a.groups[dir]
	return several, ok
}

// without are the names that are not known to be alone in an open layer. One that is
// may have left the index since, so that their number says nothing.
func (a *alone) without(open snapshot.LayerID, names []string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open != open {
		return names
	}
	return slices.DeleteFunc(names, func(n string) bool { return a.names[n] })
}

func (a *alone) add(open snapshot.LayerID, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.open != open {
		a.open, a.names = open, map[string]bool{}
	}
	a.names[name] = true
}

// dropAlone takes from j what is alone: a layer's file, so none of base's, that has
// no two names in any unit.
func (d *Driver) dropAlone(open snapshot.LayerID, j *joining) error {
	units, err := d.mounted(open)
	if err != nil {
		return err
	}
	for name, files := range j.of {
		if !files.layered {
			continue
		}
		grouped, err := d.inGroup(units, files.lower)
		if err != nil {
			return err
		}
		if !grouped {
			j.drop(name)
			d.alone.add(open, name)
		}
	}
	return nil
}

// inGroup tells whether a file has several names in any of the units.
func (d *Driver) inGroup(units []unit, file inode) (bool, error) {
	for _, u := range units {
		several, err := d.groups(u)
		if err != nil || several[file.ino] {
			return true, err
		}
	}
	return false, nil
}

// drop takes an entry of the index away.
func (j *joining) drop(name string) {
	delete(j.upper, j.of[name].upper)
	delete(j.lowers, j.of[name].lower)
	delete(j.of, name)
	j.names = slices.DeleteFunc(j.names, func(n string) bool { return n == name })
}
