// Package fallback keeps layers of a tree by copying: the driver for hosts
// that cannot mount an overlay.
//
// The tree stays a plain directory all the time. Beside it the driver keeps an
// index (what every path was when it was looked at last) and a store (the bytes
// of every version of every file, each once). After a command a walk of the
// metadata finds what changed; the layer keeps both sides of each change, and a
// rollback puts the old side back. The format, the crash table and the limits
// are told in docs/copy-driver.md.
//
// It is not for hosts where the overlay driver works: there a snapshot costs
// the same on a tree of any size, here it costs a walk. It runs no command and
// knows nothing of the record.
package fallback
