package overlay

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A stamp is a time as file systems keep it.
type stamp struct {
	Sec  int64
	Nsec uint32
}

func stampOf(t unix.StatxTimestamp) stamp { return stamp{t.Sec, t.Nsec} }

// identity tells a directory from others, also from one that had its inode
// number before: by its time of birth.
type identity struct {
	Ino   uint64
	Birth stamp
}

// A known is what is remembered of one entry of an upper: enough to see that it
// is the same and has not changed. Any change to an inode moves its ctime.
type known struct {
	ID    identity
	Ctime stamp
	Mode  uint32
	Racy  bool // changed so lately that a further change may not show
	Kids  map[string]*known
	// Origin is the path of a directory in what the upper stands on, if that is
	// another one.
	Origin string
}

func knownOf(st *unix.Statx_t, clock stamp) *known {
	k := &known{ID: identity{st.Ino, stampOf(st.Btime)}, Ctime: stampOf(st.Ctime), Mode: uint32(st.Mode)}
	k.Racy = racy(k.Ctime, clock)
	return k
}

// isDir holds for a directory that can be known again.
func (k *known) isDir() bool {
	return k != nil && k.Mode&unix.S_IFMT == unix.S_IFDIR && k.ID.Birth != stamp{}
}

// kid is what is known of a name in a directory, of which nothing may be.
func (k *known) kid(name string) *known {
	if k == nil {
		return nil
	}
	return k.Kids[name]
}

// unchanged tells whether an entry is as it was.
func (k *known) unchanged(st *unix.Statx_t) bool {
	return !k.Racy && k.ID.Ino == st.Ino && k.Ctime == stampOf(st.Ctime) && k.Mode == uint32(st.Mode)
}

// owe has the next scan come to a name of a directory, there or not: an absent one that
// nothing is known of is taken for one that the layers do not have either.
func (k *known) owe(name string) {
	if k.Kids[name] != nil {
		return
	}
	if k.Kids == nil {
		k.Kids = map[string]*known{}
	}
	k.Kids[name] = &known{Racy: true}
}

// A change within a tick of the clock that stamps it may leave ctime as it is
// (git's technical/racy-git): 10 ms at the longest, CONFIG_HZ=100; two seconds
// where a file system keeps whole ones.
const (
	tick       = 10_000_000
	coarseTick = 2
)

func racy(ctime, clock stamp) bool {
	if ctime.Nsec == 0 {
		return ctime.Sec+coarseTick >= clock.Sec
	}
	at := ctime.Sec*1e9 + int64(ctime.Nsec) + tick
	return at >= clock.Sec*1e9+int64(clock.Nsec)
}

func clockNow() (stamp, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t); err != nil {
		return stamp{}, fmt.Errorf("clock_gettime: %w", err)
	}
	return stamp{t.Sec, uint32(t.Nsec)}, nil
}

// An upperIndex is what was the same in a live upper and in the layers that
// were copied out of it.
type upperIndex struct {
	file  string
	dirty bool
	indexData
}

// indexData is what is kept on disk. It holds for the layers up to Top, and so
// for any stack that has Top in it: ids are never used twice.
type indexData struct {
	Top  snapshot.LayerID // "": of no layer
	Root *known           // nil: nothing is known
	// Placed are directories that a restore made and that are not known yet.
	Placed map[identity]bool
}

// holdsFor tells whether the stack is the one that the index was made for, or has grown
// out of it. If not the index forgets everything.
func (ix *upperIndex) holdsFor(layers []snapshot.LayerID) bool {
	if ix.Top == "" || slices.Contains(layers, ix.Top) {
		return true
	}
	ix.indexData = indexData{}
	return false
}

// owe is known.owe of a path. Where the directory is not known all of it is looked at.
func (ix *upperIndex) owe(path string) {
	if ix.Root == nil {
		return
	}
	if dir := ix.Root.find(filepath.Dir(path)); dir.isDir() {
		dir.owe(filepath.Base(path))
	}
}

func last(layers []snapshot.LayerID) snapshot.LayerID {
	if len(layers) == 0 {
		return ""
	}
	return layers[len(layers)-1]
}

// index reads an upper's index, or remembers it. One that cannot be read is an
// empty one.
func (d *Driver) index(open snapshot.LayerID) *upperIndex {
	if ix := d.indexes[open]; ix != nil {
		return ix
	}
	ix := &upperIndex{file: d.dir(open, "index")}
	ix.indexData = loadIndex(ix.file)
	if d.indexes == nil {
		d.indexes = map[snapshot.LayerID]*upperIndex{}
	}
	d.indexes[open] = ix
	return ix
}

func loadIndex(file string) (x indexData) {
	f, err := os.Open(file)
	if err != nil {
		return x
	}
	defer f.Close() //nolint:errcheck // read only
	if gob.NewDecoder(f).Decode(&x) != nil {
		return indexData{}
	}
	return x
}

// save replaces the file if anything is new. It is not synced: see Capture.
func (ix *upperIndex) save() (err error) {
	if !ix.dirty {
		return nil
	}
	tmp := ix.file + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = gob.NewEncoder(f).Encode(ix.indexData)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, ix.file)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ix.dirty = false
	return nil
}

// notePlaced remembers directories that have been made like those of the layers:
// a capture would take them for new ones.
func (d *Driver) notePlaced(ix *upperIndex, open snapshot.LayerID, paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	root, err := d.openUnit(unit{d.dir(open, ""), 1})
	if root == nil || err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // O_PATH
	for _, path := range paths {
		st, err := statxAt(int(root.Fd()), path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return err
		}
		if ix.Placed == nil {
			ix.Placed = map[identity]bool{}
		}
		ix.Placed[identity{st.Ino, stampOf(st.Btime)}] = true
	}
	return nil
}
