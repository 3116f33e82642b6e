package fallback

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// recover finishes the restore that a crash cut off, or takes it back if it
// cannot be finished, and removes what is left of its stage. Of one in two parts
// the second follows.
func (d *Driver) recover(ctx context.Context) error {
	if err := d.recoverOne(); err != nil {
		return err
	}
	return d.recoverLean(ctx)
}

func (d *Driver) recoverOne() (err error) {
	j, err := loadJournal(d.at(journalApply))
	applying := err == nil
	if errors.Is(err, fs.ErrNotExist) {
		j, err = loadJournal(d.at(journalClean))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// A stage in the tree works on either mount, one in the state on its own only.
	root, err := d.rootWithout(j.name != "")
	if err != nil {
		return err
	}
	defer closing(root.fd, &err)
	if !applying {
		return d.removeStage(root, j)
	}
	return d.resume(root, j)
}

// remember fills in what the file of a journal does not say twice.
func (j *journal) remember() {
	old := map[string]*entry{}
	for _, c := range j.net {
		old[c.path] = c.pre
	}
	for i := range j.ops {
		if j.ops[i].kind != opBring {
			j.ops[i].old = old[j.ops[i].path]
		}
	}
}

func (d *Driver) resume(root beneath, j *journal) (err error) {
	done := d.ix != nil && d.ix.restored >= j.id
	s, err := d.stageOf(root, j)
	if done && errors.Is(err, fs.ErrNotExist) {
		return os.Remove(d.at(journalApply))
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	a := &applier{root, s.fd, j}
	if !done {
		j.remember()
		if err = a.forward(); err == nil {
			err = d.finish(a)
		}
		if err != nil {
			why := d.takeBack(a, err)
			if _, e := os.Stat(d.at(journalApply)); e == nil {
				return why
			}
			return nil // the tree is as it was before the restore
		}
	}
	return d.clean(a)
}

// look stats every path of the journal again, since what was restored has new
// inode numbers and times. One that somebody has changed already is left to the
// next scan.
func (a *applier) look() error {
	clock := stamp{} // all are racy: somebody may have written since
	dirs := map[string]int{}
	defer func() {
		for _, fd := range dirs {
			unix.Close(fd) //nolint:errcheck // opened with O_PATH: nothing to lose
		}
	}()
	for i := range a.j.net {
		c := &a.j.net[i]
		if c.post == nil {
			continue
		}
		if err := a.lookAt(c, clock, dirs); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) lookAt(c *change, clock stamp, dirs map[string]int) error {
	dir, name := split(c.path)
	fd, ok := dirs[dir]
	if !ok {
		for k, old := range dirs { // net is in path order: one is enough
			delete(dirs, k)
			if err := unix.Close(old); err != nil {
				return fmt.Errorf("close: %w", err)
			}
		}
		var err error
		if fd, err = a.root.open(dir, unix.O_PATH|unix.O_DIRECTORY); err != nil {
			return stale(err)
		}
		dirs[dir] = fd
	}
	if c.path == "." {
		name = ""
	}
	st, err := statAt(fd, name, c.path)
	if err != nil {
		return stale(err)
	}
	e := *c.post
	e.ino, e.ctime, e.btime, e.racy = st.ino, st.ctime, st.btime, racy(st.ctime, clock)
	if e.mtime != st.mtime || e.mode != st.mode || !e.isDir() && e.size != st.size {
		e.ctime = stamp{}
	}
	c.post = &e
	return nil
}
