package snapshot

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Code is a word that programs can act on. The words are those of the wire
// protocol (docs/protocol.md).
type Code string

// The codes.
const (
	CodeBadRequest      Code = "bad_request"
	CodeUnknownSnapshot Code = "unknown_snapshot"
	CodeUnknownBatch    Code = "unknown_batch"
	CodeExpired         Code = "expired"
	CodeTreeBusy        Code = "tree_busy"
	CodeDriftConflict   Code = "drift_conflict"
	CodeNotFound        Code = "not_found"
	CodeUnsupported     Code = "unsupported"
	CodeFailedToStart   Code = "command_failed_to_start"
	CodeNoSpace         Code = "no_space"
	CodeInternal        Code = "internal"
)

// Error is an error that a person reads: what is wrong, and what to do.
type Error struct {
	Code       Code
	Msg        string   // what is wrong, with the names and numbers of this case
	Hint       string   // what to do about it
	Holders    []Holder // who is in the way, for CodeTreeBusy
	Paths      []string // what would be lost, for CodeDriftConflict
	Candidates []string // what an ambiguous id could have meant
	Err        error    // the cause, if there is one
}

// Error is one line, or several where processes, paths or ids are listed.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Msg)
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	for _, h := range e.Holders {
		fmt.Fprintf(&b, "\n  %s: %s", h.Who(), h.How)
		if h.Path != "" {
			fmt.Fprintf(&b, " %q", h.Path)
		}
	}
	for _, p := range e.Paths {
		fmt.Fprintf(&b, "\n  %q", p)
	}
	for _, c := range e.Candidates {
		fmt.Fprintf(&b, "\n  %s", c)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "\n%s", e.Hint)
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// CodeOf finds the code of err. An error without one is CodeNoSpace when the
// disk, the quota or the inodes ran out, CodeInternal otherwise.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return CodeNoSpace
	}
	return CodeInternal
}

// Unconfirmed is an error for which IsUnconfirmed holds.
func Unconfirmed(cause error) error {
	return &Error{
		Code: CodeInternal, Msg: "what was asked is done, but the disk does not confirm it", Err: errors.Join(errUnconfirmed, cause),
		Hint: "the tree shows it; look after the disk (dmesg), for a power cut may take it back",
	}
}

// errUnconfirmed marks an operation that took place, of which the disk could not
// say that it will last.
var errUnconfirmed = errors.New("not synced")

// ErrNotCopied is in the error of who asks for contents that were only noted (Noter).
var ErrNotCopied = errors.New("there was no room to copy it")

// Underway is an error of Show: it has begun what can only be finished, which the next
// one who opens the driver does. See IsUnderway.
func Underway(cause error) error {
	return &Error{
		Code: CodeOf(cause), Msg: "this was begun and can only be finished", Err: errors.Join(errUnderway, cause),
		Hint: "make room and call deployx again (status does): it goes on from here",
	}
}

var errUnderway = errors.New("not finished")

// IsUnderway tells whether err is of a Show that will go on.
func IsUnderway(err error) bool { return errors.Is(err, errUnderway) }

// IsUnconfirmed tells whether err is about something that did take place: head
// and tree have moved, and only whether that outlives a power cut is in doubt.
func IsUnconfirmed(err error) bool { return errors.Is(err, errUnconfirmed) }
