package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// sequel is the second part of a restore on a disk where what comes has no room
// beside what goes. The first part is a restore that only takes things out; once
// it is done, and what it took out removed, there is no way back, and whoever
// opens the driver goes on with this.
type sequel struct {
	first uint64   // the number of the first part
	net   []change // all paths that change; how they are before is asked anew
	view  shown
}

const (
	journalSequel = "restore.next"
	sequelMagic   = "deployx copy restore part 2 1\n"
)

func (q *sequel) save(path string) error {
	e := encoder{b: []byte(sequelMagic)}
	e.uint(q.first)
	e.changes(q.net)
	e.view(&q.view)
	return durable.Write(path, appendSum(e.b))
}

func loadSequel(path string) (*sequel, error) {
	d, err := readSummed(path, sequelMagic)
	if err != nil {
		return nil, err
	}
	q := &sequel{first: d.uint(), net: d.changes(), view: d.view()}
	if d.err != nil {
		return nil, fmt.Errorf("%s: %w", path, d.err)
	}
	return q, nil
}

// underway says that a restore was begun that is neither done nor taken back.
func (d *Driver) underway() bool {
	for _, name := range []string{journalApply, journalClean, journalSequel} {
		if _, err := os.Lstat(d.at(name)); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// lean makes net changes in two parts, if the first makes enough room for the
// second. When it is neither done nor an error nothing was changed.
func (d *Driver) lean(ctx context.Context, root beneath, net []change, v shown) (done bool, err error) {
	p, err := d.verified(ctx, root, net)
	if err != nil {
		return false, err
	}
	if err := d.refuseAbsent(p); err != nil {
		return false, err
	}
	out := p.goes()
	if len(out) == 0 {
		return false, nil
	}
	if !d.opt.hooks.lean {
		if ok, err := d.makesRoom(root, p); !ok || err != nil {
			return false, err
		}
	}
	q := &sequel{first: d.ix.seq + 1, net: net, view: v}
	if err := q.save(d.at(journalSequel)); err != nil {
		return false, errors.Join(err, d.dropSequel())
	}
	crash.Point("fallback.lean.noted")
	if err := d.replace(ctx, root, out, d.ix.view); err != nil {
		if d.ix.restored >= q.first || exists(d.at(journalApply)) {
			return false, err // who opens the driver goes on
		}
		return false, errors.Join(err, d.dropSequel())
	}
	return true, d.follow(ctx, root, q)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (d *Driver) dropSequel() error {
	if err := os.Remove(d.at(journalSequel)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// goes are the changes that only take out: every top of which there is something
// now, with all below it.
func (p *plan) goes() []change {
	out := map[int]bool{}
	for _, t := range p.tops {
		out[t.n] = t.pre != nil
	}
	at := map[string]int{}
	for _, t := range p.tops {
		at[t.path] = t.n
	}
	var list []change
	for path, c := range p.net {
		n, ok := at[path]
		if !ok {
			n, ok = p.covered[path]
		}
		if ok && out[n] && c.pre != nil {
			list = append(list, change{path, c.pre, nil})
		}
	}
	slices.SortFunc(list, byPath)
	return list
}

// Room for what grows beside the files: directories, the log, the journal.
const leanSlack = 128 << 10

// makesRoom compares what comes with what is free, and what goes and nobody else
// has open: the blocks of such a file are free once its name is.
func (d *Driver) makesRoom(root beneath, p *plan) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root.fd, &fs); err != nil {
		return false, sysError("fstatfs", d.opt.Tree, err)
	}
	need, inodes := int64(leanSlack), int64(16)
	for _, c := range p.staged() {
		inodes++
		need += fs.Bsize // a directory's, or a part of one and of the blocks' tree
		if c.post.isRegular() && c.post.obj != (object{}) {
			need += (d.store.allocated(c.post.obj, c.post.size) + fs.Bsize - 1) / fs.Bsize * fs.Bsize
		}
		if c.post.xattrs != "" {
			need += fs.Bsize
		}
	}
	have, free := usable(&fs), int64(fs.Ffree)
	for _, c := range p.goes() {
		if have >= need && (free >= inodes || fs.Files == 0) {
			return true, nil
		}
		if !c.pre.isRegular() && !c.pre.isDir() {
			continue
		}
		n, err := freed(root, c.path)
		if err != nil {
			return false, err
		}
		if n >= 0 {
			have, free = have+n, free+1
		}
	}
	return have >= need && (free >= inodes || fs.Files == 0), nil
}

// usable is available, less what ext4 keeps for itself of what only root may use
// (s_resv_clusters in its super.c).
func usable(fs *unix.Statfs_t) int64 {
	own := int64(min(fs.Blocks/50, 4096)) * fs.Bsize
	return max(int64(fs.Bavail)*fs.Bsize, available(fs)-own)
}

// freed is what removing the file or directory gives back; -1 where it has other names, or
// somebody may have it open, for a lease for writing is refused (fcntl(2), F_SETLEASE).
func freed(root beneath, path string) (n int64, err error) {
	fd, err := root.open(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return -1, nil //nolint:nilerr // one that we may not look at makes no room
	}
	defer closing(fd, &err)
	st, err := statAt(fd, "", path)
	if err != nil || st.mode&unix.S_IFMT == unix.S_IFDIR {
		return st.blocks * 512, err
	}
	if st.nlink > 1 {
		return -1, nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		return -1, nil //nolint:nilerr // so it is held, or that cannot be known
	}
	return st.blocks * 512, nil
}

// follow does the second part. What somebody has written since is kept as in any
// restore.
func (d *Driver) follow(ctx context.Context, root beneath, q *sequel) error {
	d.half = true
	defer func() { d.half = false }()
	for range changeTries {
		// A stage that a crash left would be in the way, and take the room.
		if err := errors.Join(d.emptyStage(), d.emptyTrash()); err != nil {
			return underway(err)
		}
		crash.Point("fallback.lean.emptied")
		net, err := d.rest(q)
		if err != nil {
			return underway(err)
		}
		if len(net) == 0 {
			err = d.commit(&tx{view: &q.view}, true)
		} else {
			err = d.replace(ctx, root, net, q.view)
		}
		switch {
		case err == nil:
			crash.Point("fallback.lean.done")
			return d.dropSequel()
		case errors.Is(err, errStale):
			if _, err := d.absorb(ctx, root); err != nil {
				return underway(err)
			}
		case errors.Is(err, unix.EXDEV) && !d.inTree:
			d.inTree = true
		default:
			return underway(err)
		}
	}
	return underway(errStale)
}

func underway(err error) error {
	return snapshot.Underway(fmt.Errorf("on a full disk what goes was removed first, and what comes is not there yet: %w", err))
}

// rest is what is still to be done of q.
func (d *Driver) rest(q *sequel) ([]change, error) {
	var net []change
	for _, c := range q.net {
		c.pre = d.entryAt(c.path)
		same, err := d.equal(c.pre, c.post)
		if err != nil {
			return nil, err
		}
		if !same {
			net = append(net, c)
		}
	}
	return net, nil
}

// recoverLean goes on with a restore in two parts that was cut off between them.
func (d *Driver) recoverLean(ctx context.Context) (err error) {
	q, err := loadSequel(d.at(journalSequel))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if d.ix.restored < q.first || d.ix.view.same(&q.view) {
		return d.dropSequel()
	}
	root, err := d.root()
	if err != nil {
		return err
	}
	defer closing(root.fd, &err)
	return d.follow(ctx, root, q)
}
