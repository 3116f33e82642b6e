package fallback

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// errStale: the tree is not what the index says, so a restore would lose
// something.
var errStale = errors.New("changed by somebody else in this moment")

// A tree that is written to all the time is looked at again, so often.
const changeTries = 4

// change makes the tree show v and the index say so.
func (d *Driver) change(ctx context.Context, root beneath, v shown) (late bool, err error) {
	for range changeTries {
		net, err := d.net(&v)
		if err != nil {
			return late, err
		}
		if len(net) == 0 {
			// What is written from now on belongs to v's open layer, after a
			// power cut too.
			return late, d.commit(&tx{view: &v}, true)
		}
		err = d.restore(ctx, root, net, v)
		switch {
		case errors.Is(err, errStale):
			found, e := d.absorb(ctx, root)
			if e != nil {
				return late, e
			}
			late = late || found
		case errors.Is(err, unix.EXDEV) && !d.inTree:
			d.inTree = true // project quotas: rename(2)
		default:
			return late, err
		}
	}
	return late, &snapshot.Error{
		Code: snapshot.CodeTreeBusy,
		Msg:  "the tree is written to faster than it can be restored",
		Hint: "stop what writes to it and try again; nothing was changed",
	}
}

// absorb captures what happened since the last look, and says whether that was
// anything.
func (d *Driver) absorb(ctx context.Context, root beneath) (bool, error) {
	if d.ix.view.hidden {
		return false, d.capture(ctx, root, "", stored)
	}
	l, err := d.layer(d.ix.view.Open)
	if err != nil {
		return false, err
	}
	before := l.seq
	err = d.capture(ctx, root, d.ix.view.Open, stored)
	if snapshot.CodeOf(err) == snapshot.CodeNoSpace {
		err = d.capture(ctx, root, d.ix.view.Open, noted)
	}
	return l.seq != before, err
}

// restore makes net changes in the tree, all or none. Where what comes has no room
// beside what goes, that goes first.
func (d *Driver) restore(ctx context.Context, root beneath, net []change, v shown) error {
	if d.opt.hooks.lean {
		if done, err := d.lean(ctx, root, net, v); done || err != nil {
			return err
		}
	}
	err := d.replace(ctx, root, net, v)
	if snapshot.CodeOf(err) != snapshot.CodeNoSpace || d.underway() {
		return err
	}
	if done, e := d.lean(ctx, root, net, v); done || e != nil {
		return e
	}
	return err
}

// replace makes net changes by a stage in which all that comes is complete first.
func (d *Driver) replace(ctx context.Context, root beneath, net []change, v shown) (err error) {
	p, err := d.verified(ctx, root, net)
	if err != nil {
		return err
	}
	if err := d.refuseMounted(p); err != nil {
		return err
	}
	if err := d.refuseAbsent(p); err != nil {
		return err
	}
	j := &journal{id: d.ix.seq + 1, net: net, view: v}
	s, err := d.openStage(root, j)
	if err != nil {
		return fmt.Errorf("make stage: %w", err)
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err = d.build(ctx, root, s, p); err == nil {
		err = d.start(j, s, p)
	}
	if durable.IsPublished(err) { // the journal stands: it must go before the stage does
		if e := d.withdraw(); e != nil {
			return errors.Join(err, e)
		}
	}
	if err != nil {
		return errors.Join(err, d.removeStage(root, j))
	}
	a := &applier{root, s.fd, j}
	if err = a.forward(); err == nil {
		err = d.finish(a)
	}
	if err != nil {
		return d.takeBack(a, err)
	}
	if err := d.clean(a); err != nil {
		d.late = errors.Join(d.late, err) // it is done; recover cleans another time
	}
	return nil
}

// start completes the journal and makes it last. From then on the restore is
// finished or taken back by whoever opens the driver.
func (d *Driver) start(j *journal, s *stage, p *plan) error {
	exchange := !d.opt.hooks.noExchange && canExchange(s.fd)
	for _, t := range p.tops {
		ops, err := t.ops(s, exchange)
		if err != nil {
			return err
		}
		j.ops = append(j.ops, ops...)
	}
	d.settles(j, p)
	t := j.tx(d.ix)
	if err := d.log.reserve(len(t.encode()) + 64*len(j.net)); err != nil {
		return err
	}
	return j.save(d.at(journalApply))
}

// ops are the renames for one top.
func (t top) ops(s *stage, exchange bool) ([]op, error) {
	name := stageName(t.n)
	o := op{path: t.path, name: name, old: t.pre}
	if t.post != nil {
		st, err := statAt(s.fd, name, t.path)
		if err != nil {
			return nil, err
		}
		o.ino = st.ino
	}
	switch {
	case t.pre == nil:
		o.kind = opBring
	case t.post == nil:
		o.kind = opTake
	case exchange:
		o.kind = opSwap
	default:
		return []op{
			{kind: opTake, path: t.path, name: name + ".old", old: t.pre},
			{kind: opBring, path: t.path, name: name, ino: o.ino},
		}, nil
	}
	return []op{o}, nil
}

// canExchange tries RENAME_EXCHANGE in the stage. Where names cannot be
// exchanged (NFS, FAT) a swap is two renames, and there is a moment with neither.
func canExchange(stage int) bool {
	const a, b = "exchange-a", "exchange-b"
	ok := unix.Mkdirat(stage, a, 0o700) == nil && unix.Mkdirat(stage, b, 0o700) == nil &&
		unix.Renameat2(stage, a, stage, b, unix.RENAME_EXCHANGE) == nil
	for _, name := range []string{a, b} {
		if err := unix.Unlinkat(stage, name, unix.AT_REMOVEDIR); err != nil {
			return false
		}
	}
	return ok
}

// settles lists what is set in the end, deepest first, and what must be
// unlocked before.
func (d *Driver) settles(j *journal, p *plan) {
	late := map[string]*change{}
	for path, c := range p.settles {
		late[path] = c
		if needsUnlock(c) {
			j.unlock = append(j.unlock, path)
		}
	}
	for _, t := range p.tops {
		if needsUnlock(t.change) {
			j.unlock = append(j.unlock, t.path)
		}
		c := &change{path: t.path}
		if t.pre != nil && (t.pre.isDir() || locks(t.pre)) {
			c.pre = t.pre
		}
		if t.post != nil && (t.post.isDir() || locks(t.post)) { // xfs touches a directory that it moves
			c.post = t.post
		}
		if c.pre != nil || c.post != nil {
			late[t.path] = c
		}
	}
	for _, s := range p.inside {
		if s.post.flags&lockFlags != 0 || s.post.isDir() && movable(s.post).mode != s.post.mode {
			late[s.path] = &change{path: s.path, post: s.post}
		}
	}
	for path, c := range late {
		j.settles = append(j.settles, change{path, c.pre, c.post})
	}
	slices.SortFunc(j.settles, func(a, b change) int { return strings.Compare(b.path, a.path) })
	slices.Sort(j.unlock)
}

// needsUnlock: in either direction something has to be moved.
func needsUnlock(c *change) bool { return locks(c.pre) || locks(c.post) }

func locks(e *entry) bool {
	return e != nil && (e.flags&lockFlags != 0 || e.isDir() && isUnprivileged() && e.mode&0o300 != 0o300)
}

// tx is what the log is told when the restore is done.
func (j *journal) tx(ix *index) *tx {
	return &tx{sets: j.net, view: &j.view, restore: j.id, link: ix.link}
}

// finish makes the changed tree last and commits it.
func (d *Driver) finish(a *applier) error {
	crash.Point("fallback.apply.done")
	if err := unix.Syncfs(a.root.fd); err != nil {
		return sysError("syncfs", d.opt.Tree, err)
	}
	crash.Point("fallback.apply.synced")
	if err := a.look(); err != nil {
		return err
	}
	return d.commit(a.j.tx(d.ix), true)
}

// clean ends a restore of which the log knows.
func (d *Driver) clean(a *applier) error {
	crash.Point("fallback.apply.committed")
	if err := os.Rename(d.at(journalApply), d.at(journalClean)); err != nil {
		return err
	}
	if a.j.name != "" {
		return d.removeStage(a.root, a.j)
	}
	if len(a.j.net) < trashNow || d.sharesFiles(a.j) {
		return d.removeStage(a.root, a.j)
	}
	if err := d.toTrash(d.stagePath(a.root, a.j)); err != nil {
		return err
	}
	d.collect()
	return os.Remove(d.at(journalClean))
}

// So few old entries are removed before Show returns.
const trashNow = 256

// sharesFiles says that a name which went out of the tree is of a file that has
// another one there still: until it is gone, that one's link count is wrong.
func (d *Driver) sharesFiles(j *journal) bool {
	out := map[uint64]bool{}
	for _, c := range j.net {
		if c.pre != nil && !c.pre.isDir() && (c.post == nil || c.post.link != c.pre.link) {
			out[c.pre.link] = true
		}
	}
	shared := false
	d.ix.root.each(".", func(_ string, n *node) { shared = shared || !n.isDir() && out[n.link] })
	return shared
}

// takeBack undoes a restore that failed for why, and says so.
func (d *Driver) takeBack(a *applier, why error) error {
	err := a.back()
	if err == nil {
		err = sysErrorOrNil("syncfs", d.opt.Tree, unix.Syncfs(a.root.fd))
	}
	if err == nil {
		err = d.withdraw()
	}
	if err != nil {
		return fmt.Errorf("restore failed (%w), and so did taking it back, which will be tried again: %w", why, err)
	}
	crash.Point("fallback.back.done")
	return errors.Join(why, d.removeStage(a.root, a.j))
}

// withdraw makes the journal, durably, one that only speaks of the stage.
func (d *Driver) withdraw() error {
	if err := os.Rename(d.at(journalApply), d.at(journalClean)); err != nil {
		return err
	}
	return durable.SyncDir(d.opt.State)
}
