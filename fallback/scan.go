package fallback

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sort"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/snapshot"
)

// found is a path whose metadata is not that of the index, or could hide a
// change. Regular files are looked into later; of all others now is complete.
// A path that went while it was looked at has no mode.
type found struct {
	path  string
	old   *node // what the index has there, nil for nothing
	now   entry
	nlink uint32

	// Of a directory: entries in it that are looked at, and that are not.
	present, excluded int
}

// scan walks the tree with several workers and compares it with the index.
// Directories are always listed; of a file whose times, inode and so on are
// those of the index only the metadata is read.
type scan struct {
	root   beneath
	dev    uint64
	mount  uint64 // 0 before Linux 5.8
	filter *filter
	clock  stamp  // taken before the first look: see racy
	store  *store // nil if what it lacks does not matter
	bar    *bar

	mu    sync.Mutex
	wake  *sync.Cond
	todo  []dirJob
	busy  int
	err   error
	parts []*scanPart
}

type dirJob struct {
	path string
	old  *node
}

// scanPart is what one worker found.
type scanPart struct {
	files  []found // regular
	others []found
	gone   []goneNode // topmost: what is below went too
	bytes  int64      // allocated, of files
	small  int64      // of those that a clone is not tried for
	seen   int64
	kept   []string // directories that hold something excluded
	absent []found  // unchanged, and not in the store
	buf    []byte
}

type goneNode struct {
	path string
	old  *node
}

// walk scans dir and all below it, old being what the index has there.
func walk(ctx context.Context, root beneath, dir string, old *node, f *filter, b *bar, st *store) (*scan, error) {
	top, err := statAt(root.fd, "", ".")
	if err != nil {
		return nil, err
	}
	clock, err := clockNow()
	if err != nil {
		return nil, err
	}
	s := &scan{root: root, dev: top.dev, mount: top.mount, filter: f, clock: clock, store: st, bar: b, todo: []dirJob{{dir, old}}}
	s.wake = sync.NewCond(&s.mu)
	var wg sync.WaitGroup
	for range workers() {
		p := &scanPart{buf: make([]byte, 64<<10)}
		s.parts = append(s.parts, p)
		wg.Go(func() { s.work(ctx, p) })
	}
	wg.Wait()
	return s, s.err
}

// workers: both cores of a small host, and not every core of a large one.
func workers() int { return min(max(runtime.GOMAXPROCS(0), 2), 8) }

func (s *scan) work(ctx context.Context, p *scanPart) {
	for {
		s.mu.Lock()
		for len(s.todo) == 0 && s.busy > 0 && s.err == nil {
			s.wake.Wait()
		}
		if len(s.todo) == 0 || s.err != nil {
			s.mu.Unlock()
			s.wake.Broadcast()
			return
		}
		j := s.todo[len(s.todo)-1]
		s.todo = s.todo[:len(s.todo)-1]
		s.busy++
		s.mu.Unlock()

		more, err := s.dir(p, j)
		if err == nil {
			err = ctx.Err()
		}
		s.mu.Lock()
		s.busy--
		s.todo = append(s.todo, more...)
		if s.err == nil {
			s.err = err
		}
		s.mu.Unlock()
		s.wake.Broadcast()
	}
}

// dir scans one directory and returns those in it.
func (s *scan) dir(p *scanPart, j dirJob) (more []dirJob, err error) {
	fd, err := s.root.open(j.path, unix.O_RDONLY|unix.O_DIRECTORY)
	if gone(err) {
		p.lost(j) // the next scan sees what it has become
		return nil, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	defer closing(fd, &err)
	st, err := statAt(fd, "", j.path)
	if err != nil {
		return nil, err
	}
	if st.dev != s.dev {
		return nil, otherFilesystem(j.path)
	}
	crash.Point("fallback.scan.dir")
	d := &listing{s: s, p: p, fd: fd, job: j}
	if j.old != nil && j.old.isDir() {
		d.kids = j.old.kids
	}
	if err := d.read(); err != nil {
		return nil, err
	}
	return d.more, d.self(&st)
}

func (p *scanPart) lost(j dirJob) {
	if j.old != nil {
		p.gone = append(p.gone, goneNode(j))
	}
}

// explain says what to do about a path that cannot be read.
func explain(err error) error {
	if errors.Is(err, unix.EXDEV) {
		return &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: "another filesystem is mounted in the tree, or it has a subvolume",
			Hint: "unmount it, or leave it out with --exclude", Err: err,
		}
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		return &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: "what cannot be read cannot be protected",
			Hint: "run as its owner or as root, or leave it out with --exclude", Err: err,
		}
	}
	return err
}

func otherFilesystem(path string) error {
	return explain(sysError("statx", path, unix.EXDEV))
}

// listing is the scan of one directory.
type listing struct {
	s        *scan
	p        *scanPart
	fd       int
	job      dirJob
	kids     []*node // of the index
	more     []dirJob
	excluded int
	present  int
}

// read lists the directory and holds it against the index.
func (d *listing) read() error {
	names, err := d.names()
	if err != nil {
		return err
	}
	i := 0
	for _, name := range names {
		for i < len(d.kids) && d.kids[i].name < name {
			d.gone(d.kids[i])
			i++
		}
		var old *node
		if i < len(d.kids) && d.kids[i].name == name {
			old = d.kids[i]
			i++
		}
		if err := d.entry(name, old); err != nil {
			return err
		}
	}
	for ; i < len(d.kids); i++ {
		d.gone(d.kids[i])
	}
	if d.excluded > 0 {
		d.p.kept = append(d.p.kept, d.job.path)
	}
	d.s.bar.step("scan", int64(len(names)), 0)
	d.p.seen += int64(len(names))
	return nil
}

// names are sorted, each once: a directory that is changed while it is read may
// give a name twice.
func (d *listing) names() (names []string, err error) {
	for {
		n, err := unix.Getdents(d.fd, d.p.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, sysError("getdents", d.job.path, err)
		}
		if n == 0 {
			slices.Sort(names)
			return slices.Compact(names), nil
		}
		_, _, names = unix.ParseDirent(d.p.buf[:n], -1, names)
	}
}

func (d *listing) gone(old *node) {
	d.p.gone = append(d.p.gone, goneNode{join(d.job.path, old.name), old})
}

func (d *listing) entry(name string, old *node) error {
	path := join(d.job.path, name)
	st, err := statAt(d.fd, name, path)
	if gone(err) {
		if old != nil {
			d.gone(old)
		}
		return nil
	}
	if err != nil {
		return explain(err)
	}
	isDir := st.mode&unix.S_IFMT == unix.S_IFDIR
	if d.s.filter.excludes(path, isDir) {
		d.excluded++
		if old != nil { // captured before the patterns were given
			d.gone(old)
		}
		return nil
	}
	if st.mount != d.s.mount {
		return otherFilesystem(path)
	}
	d.present++
	if isDir {
		d.more = append(d.more, dirJob{path, old})
		if old != nil && !old.isDir() {
			d.more[len(d.more)-1].old = &node{entry: old.entry, name: old.name}
		}
		return nil
	}
	if st.mode&unix.S_IFMT == unix.S_IFREG {
		d.p.bytes += min(st.blocks*512, st.size)
		if st.size <= smallFile {
			d.p.small += st.size
		}
	}
	if old != nil && old.untouched(&st) {
		if d.s.store != nil {
			there, err := d.s.store.has(old.obj)
			if err != nil {
				return err
			}
			if !there { // nothing to compare it with
				d.p.absent = append(d.p.absent, found{path: path, old: old})
				return nil
			}
		}
		if !old.racy {
			return nil
		}
	}
	return d.touched(found{path: path, old: old, now: entryOf(&st, d.s.clock), nlink: st.nlink})
}

// touched completes what can be read without opening the entry.
func (d *listing) touched(f found) (err error) {
	if f.old != nil && f.old.isDir() { // was a directory, is none: what was in it went
		for _, k := range f.old.kids {
			d.p.gone = append(d.p.gone, goneNode{join(f.path, k.name), k})
		}
	}
	if f.now.isRegular() {
		d.p.files = append(d.p.files, f)
		return nil
	}
	_, name := split(f.path)
	if f.now.kind() == unix.S_IFLNK {
		f.now.target, err = readLink(d.fd, name, f.path)
	}
	if err == nil {
		f.now.xattrs, err = readXattrs(spotIn(d.fd, name), f.path)
	}
	if gone(err) {
		f.now = entry{}
	} else if err != nil {
		return explain(err)
	}
	d.p.others = append(d.p.others, f)
	return nil
}

func readLink(dirfd int, name, path string) (string, error) {
	for size := 256; ; size *= 4 {
		b := make([]byte, size)
		n, err := unix.Readlinkat(dirfd, name, b)
		if errors.Is(err, unix.EINVAL) {
			err = unix.ENOENT // no link any more
		}
		if err != nil {
			return "", sysError("readlinkat", path, err)
		}
		if n < size {
			return string(b[:n]), nil
		}
	}
}

// self compares the directory itself.
func (d *listing) self(st *stat) (err error) {
	old := d.job.old
	if old != nil && old.untouched(st) && !old.racy {
		return nil
	}
	f := found{path: d.job.path, old: old, now: entryOf(st, d.s.clock), present: d.present, excluded: d.excluded}
	if f.now.xattrs, err = readXattrs(spotOf(d.fd), f.path); err == nil {
		f.now.flags, err = readFlags(d.fd, f.path)
	}
	d.p.others = append(d.p.others, f)
	return err
}

// dropHollow leaves out new directories that hold nothing but what is excluded:
// a restore had to leave them for it, so they are as excluded as that. Others is
// in path order.
func dropHollow(others []found) []found {
	hollow := map[string]int{} // directories in it that are
	var out []found
	for _, f := range slices.Backward(others) {
		n := hollow[f.path]
		if f.old == nil && f.now.isDir() && f.path != "." && n+f.excluded > 0 && f.present == n {
			dir, _ := split(f.path)
			hollow[dir]++
			continue
		}
		out = append(out, f)
	}
	slices.Reverse(out)
	return out
}

// collected joins what the workers found, in path order.
func (s *scan) collected() (files, others []found, gone []goneNode) {
	for _, p := range s.parts {
		files = append(files, p.files...)
		others = append(others, p.others...)
		gone = append(gone, p.gone...)
	}
	sort.Slice(files, func(i, j int) bool { return files[i].path < files[j].path })
	slices.SortFunc(others, func(a, b found) int { return strings.Compare(a.path, b.path) })
	return files, dropHollow(others), gone
}

// total is the number of entries, the allocated bytes of the files, and how
// many of these are in small ones.
func (s *scan) total() (entries, bytes, small int64) {
	for _, p := range s.parts {
		entries += p.seen
		bytes += p.bytes
		small += p.small
	}
	return entries, bytes, small
}
