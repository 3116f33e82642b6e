package session

import (
	"fmt"
	"path"
	"slices"

	"deployx/shell"
	"deployx/snapshot"
)

// writers tells a command's changes in a pinned tree from those of others that
// went on meanwhile.
type writers struct {
	by    snapshot.Writers
	tag   int64 // of the command's processes
	shell int   // as it was when the command began
}

// watchKept begins to collect who changes a tree that is kept by copies already.
// The function that it returns gives up.
func (s *Session) watchKept() (giveUp func()) {
	s.endWatch()
	if h := s.rec.Head(); kept(h) {
		s.beginWatch(h)
	}
	return s.endWatch
}

// watch is watchKept for a command that is about to run, if the tree is pinned
// now; the function that it returns ends it and keeps what was found. Where it
// cannot be told everything counts as the command's, which is warned of.
func (s *Session) watch(p snapshot.Snapshot) (done func()) {
	h := s.rec.Head()
	if p.Mode != snapshot.ModeSealed || s.watched != nil && s.watched.open != h.Open {
		s.endWatch()
	}
	if p.Mode == snapshot.ModeSealed && s.watched == nil {
		s.beginWatch(h)
	}
	pid := s.sh.PID()
	return func() {
		if s.watched == nil {
			return
		}
		by, err := s.watched.stop()
		s.watched = nil
		tag := s.sh.Tag()
		if err == nil && tag == 0 {
			err = fmt.Errorf("its processes have no tag")
		}
		if err != nil {
			s.cannotTell(err)
			return
		}
		s.writers = &writers{by, tag, pid}
	}
}

// A watched is the collecting that goes on.
type watched struct {
	open snapshot.LayerID
	stop func() (snapshot.Writers, error)
}

func (s *Session) beginWatch(h snapshot.Head) {
	w, ok := s.drv.(snapshot.Watcher)
	if !ok {
		return
	}
	v, err := s.rec.View(h)
	if err == nil {
		var stop func() (snapshot.Writers, error)
		if stop, err = w.Watch(v); err == nil {
			s.watched = &watched{h.Open, stop}
			return
		}
	}
	s.cannotTell(err)
}

// endWatch gives up what is being collected, and what was.
func (s *Session) endWatch() {
	s.writers = nil
	if s.watched != nil {
		s.watched.stop() //nolint:errcheck // nobody asks
		s.watched = nil
	}
}

func (s *Session) cannotTell(err error) {
	s.o.Warn(fmt.Sprintf("cannot tell who changes the tree while the command runs, so that all of it counts as the command's: %v", err))
}

// only tells which paths are the command's: those that it has changed, whoever
// else has. What nobody was seen to change was changed before the command began or
// after it had ended, or through a mapping: the command's processes have closed
// theirs, which is seen. Of a path that is only known to have been changed by
// processes which ended before they could be looked at it is not known; it counts
// as the command's. A directory is changed by who changes what is in it, and whoever made,
// moved or removed one has changed all below.
func (w *writers) only() func(string) bool {
	if w == nil {
		return nil
	}
	within := map[string][]int64{}
	for p, by := range w.by {
		within[path.Dir(p)] = append(within[path.Dir(p)], by...)
	}
	return func(p string) bool {
		by := append(slices.Clone(w.by[p]), within[p]...)
		for len(by) == 0 && p != "." {
			p = path.Dir(p)
			by = w.by[p]
		}
		return slices.ContainsFunc(by, w.ours) || slices.Contains(by, 0) && !slices.ContainsFunc(by, w.others)
	}
}

// ours tells a tag of the command's. The shell may be idle again when it is looked at,
// or have ended.
func (w *writers) ours(tag int64) bool {
	return tag == w.tag || shell.Idle(tag) || tag == -int64(w.shell) && w.shell > 0
}

func (w *writers) others(tag int64) bool { return tag != 0 && !w.ours(tag) }

// seen tells whether the command may have changed anything, and whether others were
// seen to. What nobody was seen to change is found before the next command.
func (w *writers) seen() (ours, others bool) {
	if w == nil {
		return true, false
	}
	for _, by := range w.by {
		others = others || slices.ContainsFunc(by, w.others)
		ours = ours || slices.Contains(by, 0) || slices.ContainsFunc(by, w.ours)
	}
	return ours, others
}
