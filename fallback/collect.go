package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// Discard forgets a layer. Its bytes go later, by the collector, which the file
// that stands in "discarded" tells of also after a crash.
func (d *Driver) Discard(ctx context.Context, id snapshot.LayerID) error {
	leave, err := d.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	l, err := d.layer(id)
	if errors.Is(err, errNoLayer) {
		return nil
	}
	if err != nil {
		return err
	}
	now, err := d.chain(&d.ix.view)
	if err != nil {
		return err
	}
	for _, in := range now {
		if in == id {
			return &snapshot.Error{Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("the tree shows layer %s", id)}
		}
	}
	if err := l.save(d.at("discarded", string(id))); err != nil {
		return fmt.Errorf("discard: %w", err)
	}
	crash.Point("fallback.discard.noted")
	if err := d.commit(&tx{discard: id}, false); err != nil {
		return err
	}
	if err := os.Remove(d.layerPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.collect()
	return nil
}

// Layers lists the layers that have not been discarded.
func (d *Driver) Layers(ctx context.Context) ([]snapshot.LayerID, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	return d.ids()
}

func (d *Driver) ids() ([]snapshot.LayerID, error) {
	names, err := readNames(d.at("layers"))
	if err != nil {
		return nil, err
	}
	var ids []snapshot.LayerID
	for id := range d.dirty {
		ids = append(ids, id)
	}
	for _, name := range names {
		if id := snapshot.LayerID(name); filepath.Ext(name) != ".tmp" && !d.dirty[id] {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Usage is what a layer brought into the store; what it replaced belongs to
// base or to an older one. Inodes are the paths that it changed: small files
// have no inode of their own in the store.
func (d *Driver) Usage(ctx context.Context, id snapshot.LayerID) (snapshot.Usage, error) {
	leave, err := d.enter(ctx)
	if err != nil {
		return snapshot.Usage{}, err
	}
	defer leave()
	l, err := d.layer(id)
	if err != nil {
		return snapshot.Usage{}, err
	}
	return snapshot.Usage{Bytes: l.bytes, Inodes: int64(len(l.changes))}, nil
}

// toTrash hands a directory of ours to the collector.
func (d *Driver) toTrash(path string) error {
	return os.Rename(path, d.at("trash", fmt.Sprintf("%s-%d", filepath.Base(path), time.Now().UnixNano())))
}

// emptyStage clears what a crash left of a stage that no journal knows, and of a
// note that was being written.
func (d *Driver) emptyStage() error {
	names, err := readNames(d.at("stage"))
	for _, name := range names {
		err = errors.Join(err, d.toTrash(d.at("stage", name)))
	}
	notes, e := filepath.Glob(d.at("discarded", "*.tmp"))
	err = errors.Join(err, e)
	for _, name := range notes {
		if e := os.Remove(name); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// collect starts the collector; Close waits for it.
func (d *Driver) collect() {
	d.collector.Go(func() {
		d.sweeping.Lock()
		defer d.sweeping.Unlock()
		err := errors.Join(d.emptyTrash(), d.collectLayers())
		d.mu.Lock()
		defer d.mu.Unlock()
		d.late = errors.Join(d.late, err)
	})
}

func (d *Driver) emptyTrash() error {
	names, err := readNames(d.at("trash"))
	for _, name := range names {
		err = errors.Join(err, scrub(d.at("trash", name)))
	}
	return err
}

// collectLayers gives back the bytes that only discarded layers had.
func (d *Driver) collectLayers() error {
	names, err := readNames(d.at("discarded"))
	if err != nil {
		return err
	}
	dead := map[object]int64{}
	var done []string
	for _, name := range names {
		path := d.at("discarded", name)
		if filepath.Ext(name) == ".tmp" {
			continue // being written now; what a crash left of one goes with old stages
		}
		l, err := loadLayer(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		l.objects(func(o object, size int64) { dead[o] = size })
		done = append(done, path)
	}
	if err := d.release(dead); err != nil {
		return err
	}
	for _, path := range done {
		if e := os.Remove(path); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (l *layer) objects(visit func(object, int64)) {
	for _, c := range l.changes {
		for _, e := range []*entry{c.pre, c.post} {
			if e != nil && e.isRegular() && e.obj != (object{}) {
				visit(e.obj, e.size)
			}
		}
	}
}

// release frees those of the objects that neither the index nor a layer has.
// Once that is so of an object it stays so: nothing ever points to it again.
func (d *Driver) release(dead map[object]int64) error {
	if len(dead) == 0 {
		return nil
	}
	live, err := d.mark(dead)
	if err != nil {
		return err
	}
	for o, size := range dead {
		n, err := d.free(o, size, live[o.pack])
		if err != nil {
			return err
		}
		d.mu.Lock()
		d.freed += n
		d.mu.Unlock()
	}
	return nil
}

// mark takes what is used out of dead, and counts the live objects of each
// pack that has a dead one.
func (d *Driver) mark(dead map[object]int64) (map[uint64]int, error) {
	leave, err := d.enter(context.Background())
	if err != nil {
		return nil, err
	}
	defer leave()
	live := map[uint64]int{}
	for o := range dead {
		live[o.pack] = 0
	}
	use := func(o object, _ int64) {
		delete(dead, o)
		if n, ok := live[o.pack]; ok {
			live[o.pack] = n + 1
		}
	}
	d.ix.root.each(".", func(_ string, n *node) {
		if n.isRegular() && n.obj != (object{}) {
			use(n.obj, 0)
		}
	})
	ids, err := d.ids()
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		l, err := d.layer(id)
		if err != nil {
			return nil, err
		}
		l.objects(use)
	}
	d.forgetLayers()
	return live, nil
}

// free gives an object's blocks back: its pack if nothing in it is used, else
// a hole.
func (d *Driver) free(o object, length int64, live int) (int64, error) {
	path := d.store.path(o.pack)
	if live == 0 {
		st, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		freed := st.Size()
		if sys, ok := sysStat(st); ok && o.alone() {
			freed = min(freed, sys.Blocks*512)
		}
		return freed, d.store.remove(o.pack)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // another process's collector was here
	}
	if err != nil {
		return 0, err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, o.off, length)
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil // it goes with the pack
	}
	return 0, errors.Join(err, f.Close())
}
