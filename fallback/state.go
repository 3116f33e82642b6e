package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// makeState makes the driver's directories and opens its lock.
func (d *Driver) makeState() (err error) {
	for _, dir := range []string{d.opt.State, d.store.dir, d.at("layers"), d.at("discarded"), d.at("stage"), d.at("trash")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	d.lock, err = os.OpenFile(d.at("lock"), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) { // what is there can be read
		d.lock, err = os.OpenFile(d.at("lock"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	return err
}

// How long to wait between two looks at a lock that another process holds, at
// first and at most.
const (
	lockWait    = time.Millisecond
	lockWaitMax = 50 * time.Millisecond
)

// enter takes the state's lock and makes memory agree with the disk: what other
// processes have written is read, and what one has left undone is finished.
// Without news that takes microseconds. The caller calls leave.
//
// The tree's own lock does not do for this: a session reads without it.
func (d *Driver) enter(ctx context.Context) (leave func(), err error) {
	d.mu.Lock()
	for wait := lockWait; ; wait = min(2*wait, lockWaitMax) {
		err = unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			d.mu.Unlock()
			return nil, sysError("flock", d.lock.Name(), err)
		}
		select {
		case <-ctx.Done():
			d.mu.Unlock()
			return nil, fmt.Errorf("wait for the copy driver's lock: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
	leave = func() {
		unix.Flock(int(d.lock.Fd()), unix.LOCK_UN) //nolint:errcheck // ours, and open: it cannot fail
		d.mu.Unlock()
	}
	if err := d.refresh(ctx); err != nil {
		leave()
		return nil, err
	}
	return leave, nil
}

// fileID tells one version of a file that is replaced by rename from another.
type fileID struct {
	ino   uint64
	ctime stamp
}

func (d *Driver) indexID() (fileID, error) {
	st, err := statAt(unix.AT_FDCWD, d.at("index"), d.at("index"))
	if errors.Is(err, fs.ErrNotExist) {
		return fileID{}, nil
	}
	return fileID{st.ino, st.ctime}, err
}

// refresh reads what is new. While the index is the same file the log has only
// grown.
func (d *Driver) refresh(ctx context.Context) error {
	id, err := d.indexID()
	if err != nil {
		return err
	}
	if d.log != nil && d.log.readOnly { // it may be writable by now
		err = d.log.f.Close()
		d.log = nil
	}
	all := d.log == nil || d.log.err != nil || id != d.seen
	if all {
		err = errors.Join(err, d.load(id))
	} else {
		err = d.log.replay(d.log.end, d.replay)
	}
	if err != nil {
		d.seen = fileID{ino: ^uint64(0)} // memory is in doubt: read all next time
		return err
	}
	if d.ix != nil {
		d.store.next = d.ix.pack
	}
	if err := d.recover(ctx); err != nil {
		return fmt.Errorf("finish the restore that was cut off: %w", err)
	}
	if all {
		return d.emptyStage()
	}
	return nil
}

// load reads the index and the log, and removes what a crash left.
func (d *Driver) load(id fileID) error {
	clear(d.layers)
	clear(d.dirty)
	ix, err := loadIndex(d.at("index"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	d.ix, d.seen = ix, id
	if d.log == nil {
		if d.log, err = openLog(d.at("log")); err != nil {
			return err
		}
	}
	if err := d.log.replay(0, d.replay); err != nil {
		return err
	}
	if err := d.checkIndex(); err != nil {
		return err
	}
	next := uint64(1)
	if d.ix != nil {
		next = d.ix.pack
	}
	return d.store.sweep(next)
}

func (d *Driver) checkIndex() error {
	if d.ix == nil {
		return nil
	}
	if d.ix.tree != d.opt.Tree {
		return &snapshot.Error{
			Code: snapshot.CodeUnsupported,
			Msg:  fmt.Sprintf("%s holds copies of %q, not of %q", d.opt.State, d.ix.tree, d.opt.Tree),
			Hint: "use another state directory",
		}
	}
	if !d.ix.view.hidden && !slices.Equal(d.ix.filter, d.opt.Exclude) {
		return &snapshot.Error{
			Code: snapshot.CodeUnsupported,
			Msg:  fmt.Sprintf("the stack was made with --exclude %q, not %q", d.ix.filter, d.opt.Exclude),
			Hint: "give the same patterns, or commit or roll back everything first",
		}
	}
	return nil
}

// replay puts a transaction of the log into the index and the layers.
func (d *Driver) replay(t *tx) error {
	if d.ix == nil {
		return fmt.Errorf("%s: missing, but there is a log of changes to it", d.at("index"))
	}
	if t.seq <= d.ix.seq {
		return nil // the index was written and the log not yet emptied
	}
	return d.take(t)
}

// take applies t in memory.
func (d *Driver) take(t *tx) error {
	if t.layer != "" && len(t.changes) > 0 {
		// Not there: a later transaction discards it.
		if err := d.know(t.layer, 0); err != nil {
			return err
		}
		if l := d.layers[t.layer]; t.seq > l.seq {
			l.add(t.seq, t.bytes, slices.Clone(t.changes))
			d.dirty[t.layer] = true
		}
	}
	d.ix.apply(t.changes)
	d.ix.apply(t.sets)
	if t.view != nil {
		d.ix.view = *t.view
		if err := d.know(t.view.Open, t.seq); err != nil {
			return err
		}
	}
	if t.discard != "" {
		delete(d.layers, t.discard)
		delete(d.dirty, t.discard)
	}
	d.ix.seq, d.ix.pack, d.ix.link = t.seq, t.pack, t.link
	d.ix.stored += t.bytes - t.freed
	d.ix.restored = max(d.ix.restored, t.restore)
	return nil
}

// know makes an empty layer for a view's open one, unless it is there.
func (d *Driver) know(id snapshot.LayerID, seq uint64) error {
	if id == "" {
		return nil
	}
	if _, err := d.layer(id); !errors.Is(err, errNoLayer) {
		return err
	}
	d.layers[id] = &layer{seq: seq}
	d.dirty[id] = true
	return nil
}

// errNoLayer: there is no such layer, or no more.
var errNoLayer = errors.New("no such layer")

// layer finds a layer in memory or on disk.
func (d *Driver) layer(id snapshot.LayerID) (*layer, error) {
	if l := d.layers[id]; l != nil {
		return l, nil
	}
	if id == "" || filepath.Base(string(id)) != string(id) {
		return nil, fmt.Errorf("%q: %w", id, errNoLayer)
	}
	l, err := loadLayer(d.layerPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%q: %w", id, errNoLayer)
	}
	if err != nil {
		return nil, err
	}
	d.layers[id] = l
	return l, nil
}

// commit makes t last and then true in memory. Everything it names is on disk
// already.
func (d *Driver) commit(t *tx, sync bool) error {
	if err := d.know(t.layer, 0); err != nil { // so that take cannot fail
		return err
	}
	if t.view != nil {
		if err := d.know(t.view.Open, 0); err != nil {
			return err
		}
	}
	t.seq, t.pack, t.link = d.ix.seq+1, d.store.next, max(t.link, d.ix.link)
	t.freed = d.freed
	if err := d.log.add(t, sync); err != nil {
		return err
	}
	d.freed = 0
	if err := d.take(t); err != nil {
		return err
	}
	if err := d.compact(false); err != nil {
		d.late = err // t stands; the log stays as long as it is
	}
	return nil
}

// A log longer than this, and than half of the index, goes into the index.
const logMax = 1 << 20

// compact writes the layers and the index anew and empties the log. Killed
// anywhere it leaves transactions in the log that the files hold already; their
// sequence numbers tell.
func (d *Driver) compact(now bool) error {
	st, err := os.Stat(d.at("index"))
	if err != nil {
		return err
	}
	limit := max(logMax, st.Size()/2)
	if d.opt.hooks.logMax > 0 {
		limit = d.opt.hooks.logMax
	}
	if !now && d.log.end < limit {
		return nil
	}
	for id := range d.dirty {
		crash.Point("fallback.compact.layer")
		if err := d.layers[id].save(d.layerPath(id)); err != nil {
			return fmt.Errorf("write layer: %w", err)
		}
	}
	if err := d.ix.save(d.at("index")); err != nil {
		return fmt.Errorf("write index: %w", err)
	}
	if d.seen, err = d.indexID(); err != nil {
		return err
	}
	crash.Point("fallback.compact.index")
	clear(d.dirty)
	d.forgetLayers()
	return d.log.reset()
}

// forgetLayers drops what can be read again.
func (d *Driver) forgetLayers() {
	for id := range d.layers {
		if !d.dirty[id] && id != d.ix.view.Open {
			delete(d.layers, id)
		}
	}
}
