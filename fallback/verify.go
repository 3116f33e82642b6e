package fallback

import (
	"context"
	"errors"
	"slices"

	"golang.org/x/sys/unix"
)

// verified plans net and holds every path that it touches against the index.
// What is excluded keeps the directories that hold it.
func (d *Driver) verified(ctx context.Context, root beneath, net []change) (*plan, error) {
	p, err := d.plan(net, nil)
	if err != nil {
		return nil, err
	}
	keep := map[string]bool{}
	for _, t := range p.tops {
		if err := d.verifyTop(ctx, root, t, keep); err != nil {
			return nil, err
		}
	}
	for path, c := range p.settles {
		if err := verifySettle(root, path, c); err != nil {
			return nil, err
		}
	}
	if len(keep) == 0 {
		return p, nil
	}
	return d.plan(net, keep)
}

func (d *Driver) verifyTop(ctx context.Context, root beneath, t top, keep map[string]bool) (err error) {
	dir, name, err := root.dir(t.path)
	if gone(err) {
		return errStale
	}
	if err != nil {
		return err
	}
	defer closing(dir, &err)
	st, err := statAt(dir, name, t.path)
	if errors.Is(err, unix.ENOENT) && t.pre == nil {
		return nil
	}
	if gone(err) || err == nil && (t.pre == nil || !t.pre.untouched(&st)) {
		return errStale
	}
	if err != nil || !t.pre.isDir() {
		return err
	}
	return d.verifyDir(ctx, root, t.path, keep)
}

// verifyDir holds a directory that goes as a whole against the index.
func (d *Driver) verifyDir(ctx context.Context, root beneath, path string, keep map[string]bool) error {
	s, err := walk(ctx, root, path, d.ix.root.find(path), &d.filter, &bar{}, nil)
	if err != nil {
		return err
	}
	files, others, gone := s.collected()
	if len(gone) > 0 {
		return errStale
	}
	for _, f := range slices.Concat(files, others) {
		if f.old == nil || !f.old.looks(&f.now) {
			return errStale
		}
	}
	for _, part := range s.parts {
		for _, k := range part.kept {
			for ; len(k) >= len(path); k, _ = split(k) {
				keep[k] = true
			}
		}
	}
	return nil
}

// verifySettle: of a directory only what is going to be written must be as the
// index says; its times go with every name in it.
func verifySettle(root beneath, path string, c *change) (err error) {
	fd, err := root.open(path, unix.O_PATH)
	if gone(err) {
		return errStale
	}
	if err != nil {
		return err
	}
	defer closing(fd, &err)
	st, err := statAt(fd, "", path)
	if err != nil {
		return err
	}
	if c.pre.isDir() && st.mode == c.pre.mode && st.uid == c.pre.uid && st.gid == c.pre.gid {
		return nil
	}
	if !c.pre.untouched(&st) {
		return errStale
	}
	return nil
}
