// Package heard keeps what came from the other side, for tests that wait for it.
package heard

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// Log is everything that came, in order. The zero value is ready.
type Log[E any] struct {
	mu      sync.Mutex
	changed chan struct{} // closed when something comes, if somebody waits
	all     []E
}

// Add appends what came.
func (l *Log[E]) Add(e E) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, e)
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// since returns what came after the first n, and a channel that is closed when
// more comes.
func (l *Log[E]) since(n int) ([]E, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.all[n:len(l.all):len(l.all)], l.changed
}

// Find returns what came so far and is wanted.
func (l *Log[E]) Find(want func(E) bool) (list []E) {
	all, _ := l.since(0)
	for _, e := range all {
		if want(e) {
			list = append(list, e)
		}
	}
	return list
}

// Wait waits until n of what is wanted have come, and returns all of that which
// have. It ends the test after a time, and shows what came last.
func (l *Log[E]) Wait(t testing.TB, atMost time.Duration, n int, what string, want func(E) bool) (list []E) {
	t.Helper()
	seen := 0
	l.Until(t, atMost, what, func() bool {
		fresh, _ := l.since(seen)
		seen += len(fresh)
		for _, e := range fresh {
			if want(e) {
				list = append(list, e)
			}
		}
		return len(list) >= n
	})
	return list
}

// Until waits until something holds, looking whenever something has come.
func (l *Log[E]) Until(t testing.TB, atMost time.Duration, what string, holds func() bool) {
	t.Helper()
	if !l.Within(atMost, holds) {
		t.Fatalf("no %s within %v; the last were\n%s", what, atMost, l.Last(25))
	}
}

// Within is Until for something that may not come to hold.
func (l *Log[E]) Within(atMost time.Duration, holds func() bool) bool {
	timer := time.NewTimer(atMost)
	defer timer.Stop()
	for {
		_, changed := l.since(0)
		if holds() {
			return true
		}
		select {
		case <-changed:
		case <-timer.C:
			return false
		}
	}
}

// Last shows what came last, a line each.
func (l *Log[E]) Last(n int) string {
	all, _ := l.since(0)
	var lines []string
	for _, e := range all[max(0, len(all)-n):] {
		lines = append(lines, fmt.Sprintf("%.250s", fmt.Sprint(e)))
	}
	return strings.Join(lines, "\n")
}
