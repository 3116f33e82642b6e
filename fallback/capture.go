package fallback

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// depth is how much of a changed file is kept: its bytes too, or where there is no
// room for them all else.
type depth int

const (
	stored depth = iota
	noted
)

// capture looks for changes and puts them into the layer, or into base when
// the layer is "". All of it is on disk when it returns; on error none is.
func (d *Driver) capture(ctx context.Context, root beneath, into snapshot.LayerID, how depth) error {
	d.bar.begin("scan", 0, 0)
	s, err := walk(ctx, root, ".", d.ix.root, &d.filter, d.bar, d.store)
	if err != nil {
		return fmt.Errorf("scan: %w", err)
	}
	if how == stored {
		if err := d.fill(s); err != nil {
			return err
		}
	}
	t, err := d.gather(ctx, s, into, how)
	if err == nil {
		err = d.record(t)
	}
	if err != nil {
		return errors.Join(err, d.store.forget())
	}
	return nil
}

// record settles the store and commits what gather made.
func (d *Driver) record(t *tx) error {
	if len(t.changes) == 0 && (len(t.sets) == 0 || d.log.readOnly) { // news alone spare work
		return d.store.forget()
	}
	t.bytes = d.store.bytes
	if err := d.store.settle(); err != nil {
		return fmt.Errorf("sync objects: %w", err)
	}
	if err := d.commit(t, len(t.changes) > 0); err != nil {
		return fmt.Errorf("record changes: %w", err)
	}
	return nil
}

// gather turns what a scan found into a transaction: it reads the files that
// may have changed and stores those that did.
func (d *Driver) gather(ctx context.Context, s *scan, into snapshot.LayerID, how depth) (*tx, error) {
	files, others, gone := s.collected()
	r := &reader{d: d, scan: s, how: how}
	if into != "" {
		l, err := d.layer(into)
		if err != nil {
			return nil, err
		}
		r.open = l
	}
	if err := r.read(ctx, files); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	names := linker{root: d.ix.root, next: max(d.ix.link, 1), fresh: map[uint64]uint64{}}
	t := &tx{layer: into}
	for _, list := range [][]found{files, others} {
		for i := range list {
			names.name(&list[i])
			t.add(&list[i])
		}
	}
	for _, g := range gone {
		g.old.each(g.path, func(path string, n *node) {
			pre := n.entry
			t.changes = append(t.changes, change{path: path, pre: &pre})
		})
	}
	t.link = names.next
	return t, nil
}

// add sorts one finding: a change, or only news for the index.
func (t *tx) add(f *found) {
	c := change{path: f.path}
	if f.old != nil {
		pre := f.old.entry
		c.pre = &pre
	}
	if f.now.mode != 0 {
		c.post = &f.now
	}
	switch {
	case c.pre == nil && c.post == nil:
	case c.pre != nil && c.post != nil && *c.pre == *c.post: // was racy, and still is
	case same(c.pre, c.post),
		// A write to an excluded entry touches the directory's time.
		f.excluded > 0 && c.pre != nil && c.pre.isDir() && c.pre.sameOwnership(c.post):
		t.sets = append(t.sets, c)
	default:
		t.changes = append(t.changes, c)
	}
}

// reader reads the files that a scan found.
type reader struct {
	d     *Driver
	scan  *scan
	how   depth
	open  *layer           // what came back to its state there is no change
	moved map[uint64]*node // the index by inode number, to know a renamed file
	flush bool             // see settleMappings
}

// A few files are handed to the disk one by one, many by their filesystem.
const flushFew = 256

// read completes files, with several workers.
func (r *reader) read(ctx context.Context, files []found) error {
	if len(files) == 0 {
		return nil
	}
	if err := r.settleMappings(len(files)); err != nil {
		return err
	}
	for i := range files {
		if files[i].old == nil && r.d.ix.root.kids != nil {
			r.moved = byInode(r.d.ix.root)
			break
		}
	}
	groups := groupLinks(files)
	r.d.bar.begin("copy", int64(len(groups)), 0)
	n := 1
	if len(groups) > 16 {
		n = workers()
	}
	var next atomic.Int64
	errs := make([]error, n)
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() { errs[w] = r.work(ctx, groups, &next) })
	}
	wg.Wait()
	r.d.bar.end()
	return errors.Join(errs...)
}

// settleMappings writes the pages of files that may have changed to disk,
// before they are read. Only the first write through a shared mapping to a
// clean page touches the times (file_update_time in the kernel's page fault
// path): a page that is dirty already would take more writes unseen.
func (r *reader) settleMappings(n int) error {
	if r.flush = n <= flushFew; r.flush {
		return nil
	}
	if err := unix.Syncfs(r.scan.root.fd); err != nil {
		return sysError("syncfs", r.d.opt.Tree, err)
	}
	return nil
}

// groupLinks puts the names of one inode together, a name that the index knows
// first.
func groupLinks(files []found) [][]*found {
	groups := make([][]*found, 0, len(files))
	at := map[uint64]int{}
	for i := range files {
		f := &files[i]
		if f.nlink < 2 {
			groups = append(groups, []*found{f})
			continue
		}
		g, ok := at[f.now.ino]
		if !ok {
			at[f.now.ino] = len(groups)
			groups = append(groups, []*found{f})
			continue
		}
		groups[g] = append(groups[g], f)
		if last := len(groups[g]) - 1; groups[g][0].old == nil && f.old != nil {
			groups[g][0], groups[g][last] = groups[g][last], groups[g][0]
		}
	}
	return groups
}

func (r *reader) work(ctx context.Context, groups [][]*found, next *atomic.Int64) error {
	p := &packer{s: r.d.store, max: r.d.room(), tell: func(n int64) { r.d.bar.step("copy", 0, n) }}
	for {
		i := int(next.Add(1)) - 1
		if i >= len(groups) || ctx.Err() != nil {
			return errors.Join(ctx.Err(), p.flush())
		}
		if err := r.group(p, groups[i]); err != nil {
			next.Store(int64(len(groups))) // the others may stop too
			return errors.Join(explain(err), p.flush())
		}
		r.d.bar.step("copy", 1, 0)
		crash.Point("fallback.capture.file")
	}
}

// group reads one inode and tells all its names.
func (r *reader) group(p *packer, g []*found) error {
	first := g[0]
	if err := r.file(p, first); err != nil {
		return fmt.Errorf("%q: %w", first.path, err)
	}
	for _, f := range g[1:] {
		f.now = first.now
	}
	return nil
}

// A file that is written to while it is read is read again, so often. After
// that it is kept as it was read last, with the times of before: the next scan
// finds it changed once more.
const readTries = 3

func (r *reader) file(p *packer, f *found) (err error) {
	fd, lock, err := r.scan.root.file(f.path)
	if gone(err) {
		f.now = entry{}
		return nil
	}
	if err != nil {
		return err
	}
	defer closing(fd, &err)
	mode := f.now.mode
	err = r.tries(p, f, fd)
	if lock == nil || f.now.mode == 0 {
		return err
	}
	if err := errors.Join(err, lock()); err != nil {
		return err
	}
	st, err := statAt(fd, "", f.path)
	f.now.mode, f.now.ctime = mode, st.ctime
	return err
}

func (r *reader) tries(p *packer, f *found, fd int) error {
	for range readTries {
		st, err := statAt(fd, "", f.path)
		if err != nil {
			return err
		}
		if st.mode&unix.S_IFMT != unix.S_IFREG {
			f.now = entry{}
			return nil
		}
		if err := r.once(p, f, fd, &st); err != nil {
			return err
		}
		after, err := statAt(fd, "", f.path)
		if err != nil || after.ctime == st.ctime && after.mtime == st.mtime && after.size == st.size {
			return err
		}
	}
	return nil
}

// once fills f.now from the open file.
func (r *reader) once(p *packer, f *found, fd int, st *stat) (err error) {
	f.now = entryOf(st, r.scan.clock)
	if f.now.xattrs, err = readXattrs(spotOf(fd), f.path); err != nil {
		return err
	}
	if f.now.flags, err = readFlags(fd, f.path); err != nil {
		return err
	}
	if r.flush {
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if err := unix.SyncFileRange(fd, 0, 0, all); errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) {
			return sysError("sync_file_range", f.path, err)
		}
	}
	for _, e := range r.candidates(f) {
		if e == nil || !e.isRegular() || e.size != st.size {
			continue
		}
		ok, err := r.d.store.matches(e.obj, e.size, fd)
		if err != nil {
			return err
		}
		if ok {
			f.now.obj = e.obj
			return nil
		}
	}
	if r.how == noted && st.size > 0 {
		f.now.obj, f.now.size = object{r.d.store.number(), later}, st.size
		return nil
	}
	f.now.obj, f.now.size, err = p.put(fd, st)
	return err
}

// candidates are entries whose bytes the file may have: its own before the
// layer and before this scan, or those of a file that was renamed.
func (r *reader) candidates(f *found) []*entry {
	var c []*entry
	if f.old != nil {
		c = append(c, &f.old.entry)
	} else if n := r.moved[f.now.ino]; n != nil {
		c = append(c, &n.entry)
	}
	if r.open != nil {
		if ch := r.open.find(f.path); ch != nil {
			c = append(c, ch.pre)
		}
	}
	return c
}

func byInode(root *node) map[uint64]*node {
	m := map[uint64]*node{}
	root.each(".", func(_ string, n *node) {
		if !n.isDir() {
			m[n.ino] = n
		}
	})
	return m
}

// room is how much more the store may take.
func (d *Driver) room() int64 {
	if d.opt.MaxBytes == 0 {
		return 1 << 62
	}
	return d.opt.MaxBytes - d.ix.stored
}
