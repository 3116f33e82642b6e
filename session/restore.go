package session

import "context"

// Restore makes the tree agree with the record, as every operation does first,
// and does nothing else: after a boot it shows the tree again. What it found is
// in Recovered. It is repeatable.
func (s *Session) Restore(ctx context.Context) error {
	return s.exclusively(ctx, func() error { return nil })
}
