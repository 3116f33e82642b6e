package fallback

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// Name is the driver's name in the record.
const Name = "copy"

// Options say what to protect and where to keep the copies.
type Options struct {
	// Tree is the directory under protection.
	Tree string
	// State is a directory of the driver's own, made with mode 0700 if it is
	// not there. It may lie on another filesystem, never in the tree.
	State string
	// MaxBytes bounds the store (base's files and all layers); 0 is no bound.
	// What would go over it is refused with its size, before it is made.
	MaxBytes int64
	// Exclude are patterns of paths that are neither captured nor restored;
	// see docs/copy-driver.md. They belong to a stack: with other patterns it is
	// not opened.
	Exclude []string
	// Progress, if set, is told now and then how far long work has come. It is
	// called by one goroutine at a time.
	Progress func(Progress)
	// Warn, if set, is told once, when base is copied, what of the tree a
	// rollback will not be able to put back.
	Warn func(text string)

	hooks hooks
}

// hooks make the driver take the ways that it takes on another kernel or
// filesystem, so that tests can go them here.
type hooks struct {
	steps      bool  // no openat2: before Linux 5.6
	noClone    bool  // no FICLONE
	noCopy     bool  // no copy_file_range
	noExchange bool  // no RENAME_EXCHANGE
	inTree     bool  // no rename from the state into the tree
	logMax     int64 // instead of logMax
	lean       bool  // as on a full disk: see lean
}

// Driver implements snapshot.Driver. Several, in several processes, may be
// open on one state: each method first takes the state's own lock, and what
// another has written since is read then.
type Driver struct {
	opt    Options
	filter filter

	lock *os.File   // flock(2) of the state, taken with mu: see enter
	mu   sync.Mutex // held by methods, and by the collector while it marks

	ix     *index // nil until base has been copied
	seen   fileID // of the file that ix was read from, or written to
	log    *wal
	layers map[snapshot.LayerID]*layer // those the log has touched, or that were asked for
	dirty  map[snapshot.LayerID]bool   // not yet in their file
	store  *store
	bar    *bar

	inTree    bool // no rename leads from the state into the tree
	half      bool // in the second part of a restore: something was changed
	collector sync.WaitGroup
	sweeping  sync.Mutex // one collector at a time
	freed     int64      // bytes that the next transaction takes off
	late      error      // of work that no method waits for; Close returns it
}

var _ snapshot.Driver = (*Driver)(nil)

// Open opens what is kept in opt.State, after finishing or taking back a
// restore that was cut off. It reads the index but not the tree.
func Open(ctx context.Context, opt Options) (*Driver, error) {
	f, err := newFilter(opt.Exclude)
	if err != nil {
		return nil, err
	}
	if err := checkPlaces(opt.Tree, opt.State); err != nil {
		return nil, err
	}
	d := &Driver{
		opt: opt, filter: f,
		layers: map[snapshot.LayerID]*layer{}, dirty: map[snapshot.LayerID]bool{},
		store:  &store{dir: filepath.Join(opt.State, "objects"), hooks: opt.hooks},
		inTree: opt.hooks.inTree,
		bar:    &bar{tell: opt.Progress},
	}
	if err := d.makeState(); err != nil {
		return nil, err
	}
	leave, err := d.enter(ctx)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	leave()
	d.collect()
	return d, nil
}

// at names a file of the state.
func (d *Driver) at(names ...string) string {
	return filepath.Join(append([]string{d.opt.State}, names...)...)
}

func (d *Driver) layerPath(id snapshot.LayerID) string { return d.at("layers", string(id)) }

// Name is "copy".
func (d *Driver) Name() string { return Name }

// Close waits for the collector and gives the files back. What the tree shows
// stays known. It returns what went wrong in work that no other method waited
// for.
func (d *Driver) Close() error {
	d.collector.Wait()
	return errors.Join(d.late, d.close())
}

func (d *Driver) close() error {
	var err error
	if d.log != nil {
		err = d.log.f.Close()
	}
	return errors.Join(err, d.lock.Close())
}

// root opens the tree's own directory; what stands above it is trusted.
func (d *Driver) root() (beneath, error) {
	below, err := mounts.Below(d.opt.Tree)
	if err != nil {
		return beneath{}, err
	}
	return d.rootWithout(len(below) > 0)
}

// rootWithout is root, without what is mounted below it if that can be.
func (d *Driver) rootWithout(mounts bool) (beneath, error) {
	if mounts {
		fd, err := d.uncovered()
		if !mayNotClone(err) {
			return beneath{fd, d.opt.hooks.steps}, err
		}
	}
	fd, err := openAt(unix.AT_FDCWD, d.opt.Tree, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return beneath{}, sysError("open", d.opt.Tree, err)
	}
	return beneath{fd, d.opt.hooks.steps}, nil
}
