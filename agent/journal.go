package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
	"deployx/snapshot"
)

// journal is one append-only file that is both the index of what was asked
// (so that nothing is done twice) and the outbox (so that no result is lost).
// One file, because "it is done" and "this is the result" must come to disk
// together.
//
// A line is the CRC-32 of the rest in eight hexadecimal digits, a space, and a
// JSON object (line). A last line that was torn by a power cut is cut off at
// the next open; a damaged one in the middle is skipped and counted.
//
// While the file is open, zeros stand behind the last line: writing over what is
// there already, a flush need not write the file's size and place too (measured
// here: a third of the time). What begins with a zero is no line: it and all
// behind it go at the next open, so that no line of an earlier life is left
// behind a newer one.
//
// The file is compacted when it has grown: results that were delivered are
// kept, newest first, up to keepBytes; older ones shrink to the bare fact that
// their id is done; ids are kept up to keepIDs.
type journal struct {
	path   string
	limits limits

	mu      sync.Mutex
	synced  *sync.Cond // on mu
	f       *os.File
	size    int64 // of the lines
	room    int64 // of the file: the lines and the zeros behind them
	compact int64 // the size at which it is compacted
	lines   uint64
	onDisk  uint64 // of lines
	syncing bool
	broken  error // once it cannot be written, nothing is promised any more

	ids     map[key]*entry
	order   []key // oldest first; may hold keys that are gone
	pending map[uint64]*event
	nonces  map[string]time.Time
	next    uint64
	damaged int // lines that did not parse at open
}

type limits struct {
	keepBytes int64         // of delivered results
	keepIDs   int           // what is older is forgotten, and would run again
	grow      int64         // least size of a compaction
	nonceAge  time.Duration // how long a signed request's id is remembered
}

func (l limits) withDefaults() limits {
	if l == (limits{}) {
		return limits{keepBytes: 16 << 20, keepIDs: 20_000, grow: 32 << 20, nonceAge: 2 * signatureAge}
	}
	return l
}

// key names what was asked for: kind and the backend's id.
type key struct{ kind, id string }

const (
	kindCommand  = "command"
	kindBatch    = "batch"
	kindRollback = "rollback" // id is that of the snapshot
	kindUnbatch  = "rollback-batch"
)

type span struct {
	at  int64
	len int32
}

// entry is what is known of a key.
type entry struct {
	key
	seen   span
	events []span // the durable events about it, in order
	done   bool   // the last of them is there, or was
}

// line is one line of the file.
type line struct {
	T  string    `json:"t"` // seen, event, acked, done, nonce
	At time.Time `json:"at,omitzero"`

	Kind    string          `json:"kind,omitempty"`
	ID      string          `json:"id,omitempty"`
	Request json.RawMessage `json:"request,omitempty"` // seen: accepted (request.go)

	N       uint64          `json:"n,omitempty"` // event, acked
	Name    string          `json:"event,omitempty"`
	Lane    string          `json:"lane,omitempty"`
	Once    bool            `json:"once,omitempty"`
	Final   bool            `json:"final,omitempty"`
	Payload json.RawMessage `json:"payload,omitempty"`
}

// openJournal reads the journal in dir, which it makes if need be.
func openJournal(dir string, l limits) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	j := &journal{
		path: filepath.Join(dir, "journal"), limits: l.withDefaults(),
		ids: map[key]*entry{}, pending: map[uint64]*event{}, nonces: map[string]time.Time{},
	}
	j.synced = sync.NewCond(&j.mu)
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(inUse(dir, err), f.Close())
	}
	j.f = f
	if err := j.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read journal: %w", err), f.Close())
	}
	j.compact = max(j.limits.grow, 2*j.size)
	return j, nil
}

func inUse(dir string, err error) error {
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return &fs.PathError{Op: "flock", Path: dir, Err: err}
	}
	return fail(snapshot.CodeTreeBusy, fmt.Sprintf("another agent uses %q", dir),
		"stop it, or give this one another --state")
}

// see notes a request, before it is acted on. dup is the entry that is there
// already, and then nothing is noted. wait returns when the note is on disk.
func (j *journal) see(k key, request json.RawMessage, again bool) (dup *entry, wait func() error, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.ids[k]; e != nil && (!again || !e.done) {
		c := *e
		return &c, nil, nil
	}
	at, n, err := j.append(line{T: "seen", At: time.Now(), Kind: k.kind, ID: k.id, Request: request})
	if err != nil {
		return nil, nil, err
	}
	j.note(k, at)
	crash.Point("journal.seen")
	return nil, func() error { return j.sync(n) }, nil
}

// note makes a fresh entry. The caller holds mu, or nobody else is there yet.
func (j *journal) note(k key, at span) {
	e := &entry{key: k, seen: at}
	if old := j.ids[k]; old == nil {
		j.order = append(j.order, k)
	} else {
		e.events = j.undeliveredOf(old) // asked for again; these are still to go
	}
	j.ids[k] = e
}

func (j *journal) undeliveredOf(e *entry) []span {
	var left []span
	for _, at := range e.events {
		for _, p := range j.pending {
			if p.at == at {
				left = append(left, at)
			}
		}
	}
	return left
}

// post writes events; they are k's results, and after a final one k is done.
// wait returns when they are on disk.
func (j *journal) post(k key, events ...*event) (wait func() error, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var n uint64
	for _, e := range events {
		if n, err = j.postOne(k, e); err != nil {
			return nil, err
		}
	}
	crash.Point("journal.posted")
	return func() error { return j.sync(n) }, nil
}

func (j *journal) postOne(k key, e *event) (uint64, error) {
	j.next++
	e.n = j.next
	at, n, err := j.append(line{
		T: "event", At: time.Now(), Kind: k.kind, ID: k.id,
		N: e.n, Name: e.name, Lane: e.lane, Once: e.once, Final: e.final, Payload: e.payload,
	})
	if err != nil {
		return 0, err
	}
	e.payload = nil // from here on it is read from the file
	j.attach(k, e, at)
	return n, nil
}

func (j *journal) attach(k key, e *event, at span) {
	e.at = at
	j.pending[e.n] = e
	if en := j.ids[k]; en != nil {
		en.events = append(en.events, at)
		en.done = en.done || e.final
	}
}

// acked notes that e need not be sent again. It is not synced: lost, it costs
// one more sending.
func (j *journal) acked(e *event) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pending[e.n] == nil {
		return nil
	}
	delete(j.pending, e.n)
	_, _, err := j.append(line{T: "acked", N: e.n})
	return err
}

// nonce remembers the id of a signed request; false if it is known already.
func (j *journal) nonce(id string, now time.Time) (fresh bool, wait func() error, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, ok := j.nonces[id]; ok {
		return false, nil, nil
	}
	_, n, err := j.append(line{T: "nonce", ID: id, At: now})
	if err != nil {
		return false, nil, err
	}
	j.nonces[id] = now
	return true, func() error { return j.sync(n) }, nil
}

// append writes one line. The caller holds mu.
func (j *journal) append(l line) (span, uint64, error) {
	if j.broken != nil {
		return span{}, 0, j.broken
	}
	if j.size > j.compact {
		if err := j.rewrite(); err != nil {
			return span{}, 0, fmt.Errorf("compact journal: %w", err)
		}
	}
	b, err := encodeLine(l)
	if err != nil {
		return span{}, 0, err
	}
	at := span{j.size, int32(len(b))}
	if err := j.writeLine(b); err != nil {
		return span{}, 0, fmt.Errorf("write journal: %w", err)
	}
	j.size += int64(len(b))
	j.lines++
	return at, j.lines, nil
}

// writeLine writes a line behind the last. On error the file is as it was.
func (j *journal) writeLine(b []byte) error {
	end := j.size + int64(len(b))
	if end > j.room {
		room := roomFor(end)
		if _, err := j.f.WriteAt(append(b, make([]byte, room-end)...), j.size); err == nil {
			j.room = room
			return nil
		}
		// There may be space for the line, if not for more.
		j.room = end
		if err := j.f.Truncate(j.size); err != nil {
			return err
		}
	}
	if _, err := j.f.WriteAt(b, j.size); err != nil {
		j.room = j.size
		return errors.Join(err, j.f.Truncate(j.size))
	}
	return nil
}

// roomFor is how large the file becomes when it has to hold end bytes: the
// larger it is the more it grows, so that few lines pay for that and a journal
// of few lines is small.
func roomFor(end int64) int64 {
	const step, most = 16 << 10, 1 << 20
	return (end/step+1)*step + min(end, most)
}

func encodeLine(l line) ([]byte, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(b), b), nil
}

// sync returns when line n is on disk. Many who wait share one flush.
func (j *journal) sync(n uint64) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.onDisk < n && j.broken == nil {
		if j.syncing {
			j.synced.Wait()
			continue
		}
		j.syncing = true
		f, upTo := j.f, j.lines
		j.mu.Unlock()
		err := durable.SyncData(f)
		j.mu.Lock()
		j.syncing = false
		if err != nil {
			// After a failed flush the kernel forgets what was dirty (fsync(2)):
			// a second try would lie.
			j.broken = err
		} else {
			j.onDisk = max(j.onDisk, upTo)
		}
		j.synced.Broadcast()
	}
	if j.onDisk >= n {
		return nil
	}
	return j.broken
}

// close gives the file back. What was posted is on disk already.
func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.syncing {
		j.synced.Wait()
	}
	if j.broken != nil {
		return j.f.Close()
	}
	j.broken = fs.ErrClosed
	return errors.Join(j.f.Truncate(j.size), j.f.Close()) // the zeros: it can be read as text
}
