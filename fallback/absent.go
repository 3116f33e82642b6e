package fallback

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

var _ snapshot.Noter = (*Driver)(nil)

// has says that the store has an object's bytes.
func (s *store) has(o object) (bool, error) {
	if o.off != later {
		return true, nil
	}
	_, err := os.Lstat(s.path(o.pack))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// fill stores what there was no room for, as far as it is in the tree still: all
// of it, or it is an error.
func (d *Driver) fill(s *scan) error {
	var files []found
	for _, p := range s.parts {
		files = append(files, p.absent...)
	}
	if len(files) == 0 {
		return nil
	}
	slices.SortFunc(files, func(a, b found) int { return strings.Compare(a.path, b.path) })
	bytes := int64(0)
	for _, f := range files {
		n, err := d.fillOne(s.root, f, bytes)
		if err != nil {
			return d.noRoomYet(f.path, err)
		}
		bytes += n
	}
	if err := durable.SyncDir(d.store.dir); err != nil {
		return err
	}
	crash.Point("fallback.filled")
	return d.commit(&tx{bytes: bytes}, true)
}

func (d *Driver) noRoomYet(path string, err error) error {
	if snapshot.CodeOf(err) != snapshot.CodeNoSpace {
		return fmt.Errorf("%q: %w", path, err)
	}
	return &snapshot.Error{
		Code: snapshot.CodeNoSpace,
		Msg:  fmt.Sprintf("there was no room to copy %q when it was written, and there is none now", path),
		Hint: "roll back the command that wrote it, or make room (--max-bytes bounds it too)",
		Err:  cause(err),
	}
}

// cause leaves out the hint of an error whose hint is about something else.
func cause(err error) error {
	var e *snapshot.Error
	if errors.As(err, &e) {
		return errors.New(e.Msg)
	}
	return err
}

// fillOne gives an object its pack, by rename, when it is whole and on disk.
func (d *Driver) fillOne(root beneath, f found, before int64) (bytes int64, err error) {
	if there, err := d.store.has(f.old.obj); there || err != nil {
		return 0, err // by another name
	}
	fd, lock, err := root.file(f.path)
	if gone(err) {
		return 0, nil // the next scan sees what it has become
	}
	if err != nil {
		return 0, explain(err)
	}
	defer closing(fd, &err)
	if lock != nil {
		defer func() { err = errors.Join(err, lock()) }()
	}
	st, err := statAt(fd, "", f.path)
	if err != nil || st.ino != f.old.ino || st.size != f.old.size || st.mtime != f.old.mtime {
		return 0, err
	}
	need := min(st.size, st.blocks*512)
	if room := d.room() - before; need > room {
		return 0, tooMuch(need, room)
	}
	if free, err := freeBytes(d.opt.State); err != nil || need > free && !d.clones(root.fd) {
		return 0, errors.Join(err, sysError("copy", f.path, unix.ENOSPC))
	}
	return need, d.copyIn(fd, &st, f.old.obj)
}

func (d *Driver) copyIn(fd int, st *stat, o object) error {
	path := d.store.path(d.store.number())
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	err = d.store.clone(int(f.Fd()), fd, st.size, func(int64) {})
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		crash.Point("fallback.fill.copied")
		err = os.Rename(path, d.store.path(o.pack))
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	crash.Point("fallback.fill.named")
	return nil
}

// refuseAbsent refuses a restore of what the store never got.
func (d *Driver) refuseAbsent(p *plan) error {
	var lost []*change
	for _, c := range p.staged() {
		if !c.post.isRegular() {
			continue
		}
		if there, err := d.store.has(c.post.obj); err != nil {
			return err
		} else if !there {
			lost = append(lost, c)
		}
	}
	if len(lost) == 0 {
		return nil
	}
	live := p.sources()
	var paths []string
	for _, c := range lost {
		if live[c.post.link] == "" {
			paths = append(paths, c.path)
		}
	}
	if len(paths) == 0 {
		return nil
	}
	slices.Sort(paths)
	return neverStored(paths[:min(len(paths), 20)])
}

func neverStored(paths []string) error {
	return &snapshot.Error{
		Code: snapshot.CodeNotFound, Msg: "what was written here cannot be brought back", Err: snapshot.ErrNotCopied, Paths: paths,
		Hint: "run the command again when there is room",
	}
}

// staged are the changes whose after side is made in the stage.
func (p *plan) staged() []*change {
	var list []*change
	for _, t := range p.tops {
		if t.post != nil {
			list = append(list, t.change)
		}
	}
	for _, s := range p.inside {
		list = append(list, s.change)
	}
	return list
}
