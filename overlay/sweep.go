package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// standing is what a mount stands on, by the id of its open layer: kept, since
// retention asks of every layer there is.
type standing struct {
	mu   sync.Mutex
	open snapshot.LayerID
	on   map[snapshot.LayerID]bool
}

// under lists the layers below an open one, those in runs too.
func (s *standing) under(d *Driver, open snapshot.LayerID) (map[snapshot.LayerID]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.on != nil && s.open == open {
		return s.on, nil
	}
	b, err := os.ReadFile(d.dir(open, "below"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	s.open, s.on = open, map[snapshot.LayerID]bool{}
	for name := range strings.FieldsSeq(string(b)) {
		list, err := readRun(filepath.Join(d.layers, "merged", name))
		if err != nil {
			list = []snapshot.LayerID{snapshot.LayerID(name)}
		}
		for _, id := range list {
			s.on[id] = true
		}
	}
	return s.on, nil
}

func (s *standing) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.on = nil
}

// lockAside tells others that somebody is at work on a half-made run. The lock
// goes with the process.
func lockAside(aside string) (*os.File, error) {
	f, err := os.Open(aside)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&fs.PathError{Op: "flock", Path: aside, Err: err}, f.Close())
	}
	return f, nil
}

// sweepRuns gives up the runs that stand for a layer which is gone, for no view
// can use them again (layer ids never are), and half-made ones that nobody is
// at work on.
func (d *Driver) sweepRuns(ctx context.Context) error {
	d.standing.forget()
	found, err := os.ReadDir(filepath.Join(d.layers, "merged"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	layers, err := d.Layers(ctx)
	if err != nil {
		return err
	}
	there := map[snapshot.LayerID]bool{}
	for _, id := range layers {
		there[id] = true
	}
	for _, f := range found {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := filepath.Join(d.layers, "merged", f.Name())
		if !dead(dir, there) {
			continue
		}
		if err := d.toTrash(dir); err != nil {
			return err
		}
	}
	return nil
}

// dead tells whether a run, or what was to become one, is of no use any more.
// One that cannot be looked at is left alone.
func dead(dir string, there map[snapshot.LayerID]bool) bool {
	if strings.HasPrefix(filepath.Base(dir), "new.") {
		lock, err := lockAside(dir)
		if err != nil {
			return false
		}
		return lock.Close() == nil
	}
	list, err := readRun(dir)
	for _, id := range list {
		if !there[id] {
			return err == nil
		}
	}
	return false
}

// Derived adds up what the runs take, as was noted when they were made. See
// snapshot.Deriver.
func (d *Driver) Derived(ctx context.Context) (sum snapshot.Usage, err error) {
	lists, err := filepath.Glob(filepath.Join(d.layers, "merged", "*", "of"))
	if err != nil {
		return sum, err
	}
	for _, name := range lists {
		size, err := readSize(filepath.Dir(name))
		if ctx.Err() != nil {
			return sum, ctx.Err()
		}
		if err == nil { // else it was swept meanwhile, or is of an older version
			sum.Bytes += size.used.Bytes
			sum.Inodes += size.used.Inodes
		}
	}
	return sum, nil
}
