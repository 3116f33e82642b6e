package session

import "context"

// Restored tells what Restore found, beside what is in Recovered.
type Restored struct {
	Layers int  // stacked, base included; 0: a plain directory
	Commit bool // a commit is not finished, see FinishCommit
}

// Restore makes the tree agree with the record, as every operation does first,
// and does nothing else: after a boot it shows the tree again. What it found is
// in Recovered. It is repeatable, and quick: it does not go on with a commit that
// was cut off.
func (s *Session) Restore(ctx context.Context) (r Restored, err error) {
	s.showOnly = true
	defer func() { s.showOnly = false }()
	err = s.exclusively(ctx, func() error {
		h := s.rec.Head()
		v, err := s.rec.View(h)
		if err != nil {
			return err
		}
		if r.Commit = h.Committing != "" || h.Retire; h.Open != "" {
			r.Layers, _ = s.drv.Depth(v)
		}
		return nil
	})
	return r, err
}

// FinishCommit goes on with a commit that was cut off, if there is one, or that
// could not unmount the tree. What
// keeps it from that is warned of, and nothing is lost.
func (s *Session) FinishCommit(ctx context.Context) error {
	return s.exclusively(ctx, func() error { return nil })
}
