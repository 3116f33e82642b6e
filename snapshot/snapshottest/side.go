package snapshottest

import (
	"time"

	"golang.org/x/sys/unix"
)

// side is a directory that takes the operations: the driver's tree or the plain
// one beside it.
type side struct {
	root  string
	verbs map[string]verb
	spans []span
	since int64 // when its last span, or what came before the first, ended
	copyUp
}

// span is when a step ran on this side, in nanoseconds since the epoch. A
// modification time within it says "now", which is the same on both sides only
// after translation.
type span struct{ from, to int64 }

func newSide(root string) *side { return &side{root: root, verbs: verbs()} }

// apply does op and returns the kernel's error number.
func (s *side) apply(op Op) error {
	do, ok := s.verbs[op.Verb]
	if !ok {
		return unknownVerb(op)
	}
	if err := s.copyUp.before(s.root, op); err != nil {
		return err
	}
	return errno(do(s.root, op))
}

// step runs f as one span. Inode times are taken from the coarse clock, which
// stands still for up to 10 ms; the spans of one side must not touch, so a span
// begins when that clock has passed the end of the one before.
func (s *side) step(f func()) {
	for clock(unix.CLOCK_REALTIME_COARSE) <= s.since {
		time.Sleep(100 * time.Microsecond)
	}
	from := clock(unix.CLOCK_REALTIME_COARSE)
	f()
	s.since = clock(unix.CLOCK_REALTIME)
	s.spans = append(s.spans, span{from, s.since})
}

func clock(id int32) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(err) // no kernel since 2.6.32 is without these clocks
	}
	return ts.Nano()
}

// stepOf translates a modification time: a time within step k becomes -1-k,
// any other stays.
func (s *side) stepOf(ns int64) int64 {
	for k, sp := range s.spans {
		if sp.from <= ns && ns <= sp.to {
			return int64(-1 - k)
		}
	}
	return ns
}
