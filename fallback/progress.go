package fallback

import (
	"sync"
	"time"
)

// Progress tells how far long work has come. Totals are 0 while unknown.
type Progress struct {
	Phase        string // "scan", "copy" or "restore"
	Files, Bytes int64
	TotalFiles   int64
	TotalBytes   int64
}

// bar gathers the steps of all workers and passes some on.
type bar struct {
	tell func(Progress)

	mu   sync.Mutex
	now  Progress
	last time.Time
}

// Often enough for an eye, seldom enough for a log.
const barEvery = 100 * time.Millisecond

// begin starts a phase.
func (b *bar) begin(phase string, files, bytes int64) {
	if b.tell == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now = Progress{Phase: phase, TotalFiles: files, TotalBytes: bytes}
	b.last = time.Now()
}

// step adds to the phase.
func (b *bar) step(phase string, files, bytes int64) {
	if b.tell == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.now.Phase != phase {
		b.now = Progress{Phase: phase}
	}
	b.now.Files += files
	b.now.Bytes += bytes
	if now := time.Now(); now.Sub(b.last) >= barEvery {
		b.last = now
		b.tell(b.now)
	}
}

// end tells how the phase ended.
func (b *bar) end() {
	if b.tell == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tell(b.now)
}
