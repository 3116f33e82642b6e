package snapshot

import "context"

// A Carrier is a driver that can carry what some paths have become in one stack
// over to another.
//
// Carry makes a sealed layer that, right above to, shows from's state at the
// paths that changes names, and to's everywhere else. Of a renamed directory all
// that is below its new path is from's. Every layer of from and to is sealed and
// stays; changes are as Changes tells them, of layers of from, in any order and
// with repeats. The caller has made sure that nothing that differs between the
// two stacks, beside what changes names, decides on one of these paths or lies
// below one that was removed or renamed.
//
// "" means that to shows that already. It changes nothing that anybody sees; what
// it made and the caller does not record is as if it had not been made.
type Carrier interface {
	Carry(ctx context.Context, from, to []LayerID, changes []Change) (LayerID, error)
}
