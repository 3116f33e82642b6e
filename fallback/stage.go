package fallback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// stage is a directory of ours on the tree's mount, from which one rename
// brings a file into the tree and takes another out.
type stage struct {
	beneath
	path string // to remove it by
}

// stagePrefix begins the name of a stage in the tree, which is needed where no
// rename leads from the state directory into it.
const stagePrefix = ".deployx-restore-"

// openStage makes the stage of j. One in the tree is noted first, so that it
// does not outlive a crash.
func (d *Driver) openStage(root beneath, j *journal) (*stage, error) {
	if !d.inTree {
		s, ok, err := d.stageInState(root, j)
		if ok || err != nil {
			return s, err
		}
		d.inTree = true
	}
	top, err := statAt(root.fd, "", ".")
	if err != nil {
		return nil, err
	}
	j.name, j.rootTime = stagePrefix+fmt.Sprint(j.id), top.mtime
	if err := j.save(d.at(journalClean)); err != nil {
		return nil, errors.Join(fmt.Errorf("note the stage: %w", err), d.unnote())
	}
	crash.Point("fallback.stage.noted")
	if err := unix.Mkdirat(root.fd, j.name, 0o700); err != nil {
		return nil, errors.Join(sysError("mkdirat", j.name, err), d.unnote())
	}
	return d.stageOf(root, j)
}

// unnote removes the note of a stage that was not made.
func (d *Driver) unnote() error {
	if err := os.Remove(d.at(journalClean)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// stageInState says ok when the state directory is on the tree's mount.
func (d *Driver) stageInState(root beneath, j *journal) (s *stage, ok bool, err error) {
	if err := os.Mkdir(d.stagePath(root, j), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, false, err
	}
	if s, err = d.stageOf(root, j); err != nil {
		return nil, false, err
	}
	a, errA := statAt(s.fd, "", s.path)
	b, errB := statAt(root.fd, "", ".")
	if err := errors.Join(errA, errB); err != nil {
		return nil, false, errors.Join(err, s.close())
	}
	if a.dev == b.dev && a.mount == b.mount && a.mount != 0 {
		return s, true, nil
	}
	return nil, false, errors.Join(s.close(), os.Remove(s.path))
}

// stagePath names the stage of j; it is below a descriptor when in the tree.
func (d *Driver) stagePath(root beneath, j *journal) string {
	if j.name != "" {
		return procPath(root.fd) + "/" + j.name
	}
	return d.at("stage", fmt.Sprint(j.id))
}

func (d *Driver) stageOf(root beneath, j *journal) (*stage, error) {
	path := d.stagePath(root, j)
	fd, err := openAt(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, sysError("open", path, err)
	}
	return &stage{beneath{fd, d.opt.hooks.steps}, path}, nil
}

func (s *stage) close() error {
	if err := unix.Close(s.fd); err != nil {
		return fmt.Errorf("close stage: %w", err)
	}
	return nil
}

// builder makes everything that will be renamed into the tree.
type builder struct {
	d     *Driver
	root  beneath
	stage *stage
	dirs  []made
	files []made
	links []link
}

type made struct {
	at string // below the stage
	*change
}

// link is one more name of a file: of one in the stage, or one in the tree.
type link struct {
	made
	from   string
	inTree bool
}

// build stages p. When it returns all of it is on disk; on error the caller
// removes the stage.
func (d *Driver) build(ctx context.Context, root beneath, s *stage, p *plan) error {
	b := &builder{d: d, root: root, stage: s}
	bytes, entries := p.bytes()
	if err := d.checkStageRoom(s, bytes, entries); err != nil {
		return err
	}
	b.sort(p)
	d.bar.begin("restore", int64(len(b.files)), bytes)
	for _, m := range b.dirs {
		if err := b.in(m.at, func(dir int, name string) error { return d.make(dir, name, m.path, m.post) }); err != nil {
			return err
		}
		crash.Point("fallback.stage.dir")
	}
	if err := b.makeFiles(ctx); err != nil {
		return err
	}
	for _, l := range b.links {
		if err := b.link(l); err != nil {
			return err
		}
	}
	for _, m := range slices.Backward(b.dirs) { // times of a directory after what is in it
		if err := b.in(m.at, func(dir int, name string) error { return dressAt(dir, name, m.path, movable(m.post)) }); err != nil {
			return err
		}
	}
	d.bar.end()
	crash.Point("fallback.stage.made")
	return b.sync()
}

// movable is a directory's entry with a mode that lets its owner move it; the
// rest comes in its place.
func movable(e *entry) *entry {
	m := *e
	if isUnprivileged() {
		m.mode |= 0o700
	}
	return &m
}

// sort puts what is to be made in an order in which it can be.
func (b *builder) sort(p *plan) {
	live := p.sources()
	first := map[uint64]string{}
	add := func(at string, c *change) {
		m := made{at, c}
		switch src, ok := live[c.post.link]; {
		case c.post.isDir():
			b.dirs = append(b.dirs, m)
		case ok:
			b.links = append(b.links, link{m, src, true})
		case first[c.post.link] != "":
			b.links = append(b.links, link{m, first[c.post.link], false})
		default:
			first[c.post.link] = at
			b.files = append(b.files, m)
		}
	}
	for _, t := range p.tops {
		if t.post != nil {
			add(stageName(t.n), t.change)
		}
	}
	for _, s := range p.inside { // in path order: directories first
		add(p.stagedPath(s), s.change)
	}
}

// in opens the directory in the stage that holds at.
func (b *builder) in(at string, do func(dir int, name string) error) (err error) {
	dir, name, err := b.stage.dir(at)
	if err != nil {
		return err
	}
	defer closing(dir, &err)
	return do(dir, name)
}

func (b *builder) makeFiles(ctx context.Context) error {
	n := 1
	if len(b.files) > 16 {
		n = workers()
	}
	var next atomic.Int64
	errs := make([]error, n)
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for ctx.Err() == nil && errs[w] == nil {
				i := int(next.Add(1)) - 1
				if i >= len(b.files) {
					return
				}
				m := b.files[i]
				errs[w] = b.in(m.at, func(dir int, name string) error { return b.d.make(dir, name, m.path, m.post) })
				b.d.bar.step("restore", 1, 0)
				crash.Point("fallback.stage.file")
			}
		})
	}
	wg.Wait()
	return errors.Join(append(errs, ctx.Err())...)
}

func (b *builder) link(l link) (err error) {
	from := b.stage.beneath
	if l.inTree {
		from = b.root
	}
	src, name, err := from.dir(l.from)
	if err != nil {
		return err
	}
	defer closing(src, &err)
	return b.in(l.at, func(dir int, as string) error {
		if err := unix.Linkat(src, name, dir, as, 0); err != nil {
			return sysError("linkat", l.path, err)
		}
		return nil
	})
}

// sync makes the stage last: a few files one by one, many with their
// filesystem.
func (b *builder) sync() error {
	if len(b.files)+len(b.dirs) > fewFiles {
		if err := unix.Syncfs(b.stage.fd); err != nil {
			return sysError("syncfs", b.stage.path, err)
		}
		return nil
	}
	sync := func(at string) (err error) {
		fd, err := b.stage.open(at, unix.O_RDONLY|unix.O_NONBLOCK)
		if errors.Is(err, unix.EACCES) { // without root, and its mode is 0
			return sysErrorOrNil("syncfs", at, unix.Syncfs(b.stage.fd))
		}
		if err != nil {
			return err
		}
		defer closing(fd, &err)
		return sysErrorOrNil("fsync", at, unix.Fsync(fd))
	}
	for _, m := range b.files {
		if !m.post.isRegular() {
			continue
		}
		if err := sync(m.at); err != nil {
			return err
		}
	}
	for _, m := range b.dirs {
		if err := sync(m.at); err != nil {
			return err
		}
	}
	return sysErrorOrNil("fsync", b.stage.path, unix.Fsync(b.stage.fd))
}

func sysErrorOrNil(op, path string, err error) error {
	if err != nil {
		return sysError(op, path, err)
	}
	return nil
}

// checkStageRoom refuses a restore that would fill the disk.
func (d *Driver) checkStageRoom(s *stage, bytes, entries int64) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(s.fd, &fs); err != nil {
		return sysError("fstatfs", s.path, err)
	}
	free := available(&fs)
	if bytes > free && !d.clones(s.fd) || fs.Files > 0 && entries > int64(fs.Ffree) {
		hint := "make room and try again; nothing was changed"
		if d.half {
			hint = ""
		}
		return &snapshot.Error{
			Code: snapshot.CodeNoSpace, Hint: hint,
			Msg: fmt.Sprintf("the restore needs %s and %d inodes beside the tree, where %s and %d are free",
				size(bytes), entries, size(free), fs.Ffree),
		}
	}
	return nil
}

// removeStage removes the stage and all in it, and notes that in the tree the
// root's time was touched by us alone. It is repeatable.
func (d *Driver) removeStage(root beneath, j *journal) error {
	crash.Point("fallback.stage.remove")
	if err := scrub(d.stagePath(root, j)); err != nil {
		return fmt.Errorf("remove stage: %w", err)
	}
	if j.name != "" {
		mtime := j.rootTime
		if d.ix.restored >= j.id {
			mtime = d.ix.root.mtime
		}
		if err := setTime(spotOf(root.fd), ".", mtime); err != nil {
			return err
		}
		// The note may lie on another filesystem, and must not go before the stage has.
		if err := unix.Syncfs(root.fd); err != nil {
			return sysError("syncfs", d.opt.Tree, err)
		}
	}
	if err := os.Remove(d.at(journalClean)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return durable.SyncDir(d.opt.State)
}

// scrub removes a directory of ours, with what flags and modes keep in it.
func scrub(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	if e := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error { return loosen(path, err) }); e != nil {
		return errors.Join(err, e)
	}
	return os.RemoveAll(dir)
}

// loosen makes one entry removable.
func loosen(path string, walkErr error) (err error) {
	fd, err := openAt(unix.AT_FDCWD, path, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return errors.Join(walkErr, err)
	}
	defer closing(fd, &err)
	st, err := statAt(fd, "", path)
	if err != nil {
		return err
	}
	if st.locked {
		err = writeFlags(fd, path, 0)
	}
	if st.mode&unix.S_IFMT == unix.S_IFDIR && st.mode&0o700 != 0o700 {
		err = errors.Join(err, unix.Chmod(procPath(fd), 0o700))
	}
	return err
}
