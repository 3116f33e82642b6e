package agent

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/durable"
)

// load reads the whole file. The caller is alone.
func (j *journal) load() error {
	r := bufio.NewReaderSize(j.f, 1<<20)
	for at := int64(0); ; {
		b, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			j.size = at
			break // a last line without its end was torn
		}
		if err == nil && b[0] == 0 {
			j.size = at
			break // zeros were there; what was to be before this was torn
		}
		if err != nil {
			return err
		}
		l, ok := decodeLine(b)
		if !ok {
			j.damaged++
		} else {
			j.replay(l, span{at, int32(len(b))})
		}
		at += int64(len(b))
	}
	j.room = j.size
	return j.f.Truncate(j.size)
}

func decodeLine(b []byte) (l line, ok bool) {
	sum, body, ok := bytes.Cut(bytes.TrimSuffix(b, []byte{'\n'}), []byte{' '})
	if !ok || fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)) != string(sum) {
		return l, false
	}
	return l, json.Unmarshal(body, &l) == nil
}

func (j *journal) replay(l line, at span) {
	k := key{l.Kind, l.ID}
	switch l.T {
	case "seen":
		j.note(k, at)
	case "event":
		j.next = max(j.next, l.N)
		if j.ids[k] == nil { // its seen line was damaged
			j.note(k, span{})
		}
		j.attach(k, &event{key: k, n: l.N, name: l.Name, lane: l.Lane, once: l.Once, final: l.Final}, at)
	case "acked":
		delete(j.pending, l.N)
	case "done":
		j.note(k, at)
		j.ids[k].done = true
	case "nonce":
		j.nonces[l.ID] = l.At
	}
}

// payload reads what e carries.
func (j *journal) payload(e *event) (json.RawMessage, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	l, err := j.readLine(e.at)
	return l.Payload, err
}

func (j *journal) readLine(at span) (l line, err error) {
	b := make([]byte, at.len)
	if _, err := j.f.ReadAt(b, at.at); err != nil {
		return l, fmt.Errorf("read journal: %w", err)
	}
	l, ok := decodeLine(b)
	if !ok {
		return l, fmt.Errorf("read journal: the line at %d is damaged", at.at)
	}
	return l, nil
}

// unfinished are the entries without a final event, oldest first, as noted.
func (j *journal) unfinished() ([]line, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	var out []line
	for _, k := range j.order {
		e := j.ids[k]
		if e == nil || e.done || e.seen.len == 0 {
			continue
		}
		l, err := j.readLine(e.seen)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// undelivered are the events that were not acked, oldest first.
func (j *journal) undelivered() []*event {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := make([]*event, 0, len(j.pending))
	for _, e := range j.pending {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b *event) int { return int(int64(a.n) - int64(b.n)) })
	return list
}

// eventsOf reads the events about k, for sending them again. They become
// pending again. None are left of what is long done.
func (j *journal) eventsOf(k key) ([]line, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.ids[k]
	if e == nil {
		return nil, nil
	}
	var out []line
	for _, at := range e.events {
		l, err := j.readLine(at)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// revive makes events of k that were acked pending again, and returns those.
func (j *journal) revive(k key) ([]*event, error) {
	lines, err := j.eventsOf(k)
	if err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	entry := j.ids[k]
	if entry == nil || len(entry.events) != len(lines) {
		return nil, nil // compacted in between: as if asked a moment later
	}
	var out []*event
	for i, l := range lines {
		if j.pending[l.N] != nil {
			continue // on its way
		}
		e := &event{key: k, n: l.N, name: l.Name, lane: l.Lane, once: l.Once, final: l.Final, at: entry.events[i]}
		j.pending[e.n] = e
		out = append(out, e)
	}
	return out, nil
}

// rewrite compacts the file. The caller holds mu.
func (j *journal) rewrite() error {
	for j.syncing { // it flushes the file that is about to go
		j.synced.Wait()
	}
	w := rewriter{j: j, now: time.Now()}
	tmp := j.path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	w.out = bufio.NewWriterSize(f, 256<<10)
	err = errors.Join(w.run(), w.out.Flush())
	if err == nil {
		err = errors.Join(unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB), f.Sync())
	}
	if err == nil {
		err = os.Rename(tmp, j.path)
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(tmp))
	}
	old := j.f
	j.f, j.size, j.room, j.onDisk = f, w.size, w.size, j.lines
	w.adopt()
	j.compact = max(j.limits.grow, 2*j.size)
	return errors.Join(old.Close(), durable.SyncDir(filepath.Dir(j.path)))
}

// rewriter copies what is kept. Nothing of the journal changes before adopt.
type rewriter struct {
	j      *journal
	now    time.Time
	out    *bufio.Writer
	size   int64
	kept   []*entry
	moved  map[int64]span // of event lines, by where they were
	nonces map[string]time.Time
}

func (w *rewriter) run() error {
	w.moved, w.nonces = map[int64]span{}, map[string]time.Time{}
	for id, at := range w.j.nonces {
		if w.now.Sub(at) < w.j.limits.nonceAge {
			w.nonces[id] = at
			if _, err := w.write(line{T: "nonce", ID: id, At: at}); err != nil {
				return err
			}
		}
	}
	entries, full := w.choose()
	for i, e := range entries {
		if err := w.entry(e, full[i]); err != nil {
			return err
		}
	}
	return nil
}

// choose lists the entries that stay, oldest first, and which of them keep
// their results.
func (w *rewriter) choose() (list []*entry, full []bool) {
	pending := map[int64]bool{}
	for _, e := range w.j.pending {
		pending[e.at.at] = true
	}
	var bytes int64
	counted := map[key]bool{}
	for _, k := range slices.Backward(w.j.order) {
		e := w.j.ids[k]
		if e == nil || counted[k] {
			continue
		}
		counted[k] = true
		needed := !e.done
		for _, at := range e.events {
			bytes += int64(at.len)
			needed = needed || pending[at.at]
		}
		keep := needed || bytes <= w.j.limits.keepBytes
		if len(list) >= w.j.limits.keepIDs && !needed {
			continue
		}
		list, full = append(list, e), append(full, keep)
	}
	slices.Reverse(list)
	slices.Reverse(full)
	return list, full
}

func (w *rewriter) entry(e *entry, full bool) error {
	c := &entry{key: e.key, done: e.done}
	w.kept = append(w.kept, c)
	if !full || e.seen.len == 0 {
		var err error
		c.seen, err = w.write(line{T: "done", Kind: e.kind, ID: e.id, At: w.now})
		if !full || err != nil {
			return err
		}
	} else {
		l, err := w.j.readLine(e.seen)
		if err == nil {
			c.seen, err = w.write(l)
		}
		if err != nil {
			return err
		}
	}
	for _, at := range e.events {
		l, err := w.j.readLine(at)
		if err != nil {
			return err
		}
		to, err := w.write(l)
		if err != nil {
			return err
		}
		w.moved[at.at] = to
		c.events = append(c.events, to)
		if w.j.pending[l.N] == nil {
			if _, err := w.write(line{T: "acked", N: l.N}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *rewriter) write(l line) (span, error) {
	b, err := encodeLine(l)
	if err != nil {
		return span{}, err
	}
	at := span{w.size, int32(len(b))}
	w.size += int64(len(b))
	_, err = w.out.Write(b)
	return at, err
}

// adopt makes the new places those of the journal.
func (w *rewriter) adopt() {
	j := w.j
	j.ids, j.order, j.nonces = map[key]*entry{}, nil, w.nonces
	for _, e := range w.kept {
		j.ids[e.key] = e
		j.order = append(j.order, e.key)
	}
	for _, e := range j.pending {
		e.at = w.moved[e.at.at]
	}
}

// knows says whether k was asked for before.
func (j *journal) knows(k key) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.ids[k] != nil
}
