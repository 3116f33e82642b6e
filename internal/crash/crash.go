// Package crash names the moments at which a kill or a power cut is
// interesting, so that tests can die exactly there.
//
// It is not for production use: nothing but a test sets a hook, and without
// one a point costs an atomic load.
package crash

import "sync/atomic"

var hook atomic.Pointer[func(name string)]

// Point marks a named moment. It calls the hook, if a test has set one.
func Point(name string) {
	if f := hook.Load(); f != nil {
		(*f)(name)
	}
}

// SetHook makes f run at every point until the returned function is called.
func SetHook(f func(name string)) (restore func()) {
	old := hook.Swap(&f)
	return func() { hook.Store(old) }
}
