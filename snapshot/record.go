package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"deployx/internal/crash"
	"deployx/internal/durable"
)

// Record is the history of one tree, in one directory:
//
//	HEAD       where the tree stands (Head)
//	HEAD.spare where it stood before; the next HEAD is written here and exchanged
//	running    the command that was started last (see Begin)
//	ID.json    one Snapshot each, never changed
//	stack      derived: the layers of one top, to spare reading every entry
//
// Reading needs no lock: HEAD is replaced whole and the rest never changes.
// Writing needs the tree's lock.
type Record struct {
	dir string

	headMu sync.Mutex
	head   Head
	top    Snapshot // the entry that head names, once it has been read
	loose  bool     // the head's move is not known to last

	mu    sync.Mutex
	stack stack // the layers of the top that was asked for last
}

// OpenRecord reads the record in dir; an empty or missing directory is an
// empty history. A file that is of another version or does not parse is named
// in the error, and nothing is touched.
func OpenRecord(dir string) (*Record, error) {
	r := &Record{dir: dir}
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// Reload reads HEAD again, for another process may have moved it.
func (r *Record) Reload() error {
	h, err := r.readHead()
	if err != nil {
		return err
	}
	if err := checkVersion(r.path("HEAD"), h.Version); err != nil {
		return err
	}
	if h.Seq != r.at().Seq {
		r.loose = true // who moved it may not have come to confirm that
		r.setHead(h)
	}
	return nil
}

// Move makes h the head, durably. On error the old head stands.
func (r *Record) Move(h Head) error { return r.Commit(h, nil) }

// Commit is Publish and then Confirm.
func (r *Record) Commit(h Head, flush Flush, entries ...Snapshot) error {
	if err := r.Publish(h, flush, entries...); err != nil {
		return err
	}
	return r.Confirm()
}

// Flush makes what the new entries tell of last, and the files named staged,
// before the head moves to them. It may leave names and attributes to the sync
// that confirms the move, where they cannot last later than the move does.
type Flush func(staged ...string) error

// Publish writes the entries that are new and then moves the head to h: entries
// and head are staged, flush makes them and the layers last, and the renames
// follow. A nil flush cares for the staged files and for no layer. On error the
// old head stands, and nothing of the new is left.
//
// Everybody sees the move, but until Confirm a power cut may take it back.
// Nothing that only the old head needs may be given up before.
func (r *Record) Publish(h Head, flush Flush, entries ...Snapshot) (err error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	h.Version, h.Seq = Version, r.at().Seq+1
	defer func() {
		if err != nil {
			err = errors.Join(err, r.unstage(entries))
		}
	}()
	staged := []string{durable.Spare(r.path("HEAD"))}
	for _, s := range entries {
		s.Version = Version
		if err := r.stage(string(s.ID)+".json", s); err != nil {
			return fmt.Errorf("write snapshot: %w", err)
		}
		staged = append(staged, r.path(string(s.ID)+".json.tmp"))
	}
	if r.loose { // on disk the spare may still be the head
		if err := os.Remove(staged[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := r.stageHead(h); err != nil {
		return fmt.Errorf("write head: %w", err)
	}
	crash.Point("record.staged")
	if flush == nil {
		flush = r.writeOut
	}
	if err := flush(staged...); err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	crash.Point("record.flushed")
	for _, s := range entries {
		name := r.path(string(s.ID) + ".json")
		if err := os.Rename(name+".tmp", name); err != nil {
			return err
		}
	}
	if err := durable.Exchange(r.path("HEAD")); err != nil {
		return fmt.Errorf("move head: %w", err)
	}
	r.setHead(h)
	r.loose = true
	crash.Point("record.moved")
	return nil
}

// Confirm makes the last move of the head last, if that is not known yet. An
// error is one for which IsUnconfirmed holds: the move has taken place.
func (r *Record) Confirm() error {
	if !r.loose {
		return nil
	}
	if err := durable.SyncDir(r.dir); err != nil {
		return Unconfirmed(err)
	}
	r.loose = false
	return nil
}

func (r *Record) path(name string) string { return filepath.Join(r.dir, name) }

// unstage removes what a Commit that failed had made. An entry that had its
// name already is on nobody's chain.
func (r *Record) unstage(entries []Snapshot) (err error) {
	var names []string
	for _, s := range entries {
		names = append(names, string(s.ID)+".json.tmp", string(s.ID)+".json")
	}
	for _, n := range names {
		if e := os.Remove(r.path(n)); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// writeOut makes staged files last, at the latest with the move of the head.
func (r *Record) writeOut(staged ...string) error {
	if durable.Ordered(r.dir) {
		return durable.WriteOut(staged...)
	}
	return durable.SyncFiles(staged...)
}

func (r *Record) stage(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return durable.Stage(r.path(name), append(b, '\n'), false)
}

// Snapshot reads one entry.
func (r *Record) Snapshot(id ID) (Snapshot, error) {
	if !validID(string(id)) {
		return Snapshot{}, &Error{Code: CodeUnknownSnapshot, Msg: fmt.Sprintf("%q is not a snapshot id", id)}
	}
	if s, ok := r.readTop(id); ok {
		return s, nil
	}
	h := r.at()
	var s Snapshot
	name := r.path(string(id) + ".json")
	switch err := readJSON(name, &s); {
	case errors.Is(err, fs.ErrNotExist) && r.expired(string(id)):
		return s, r.errExpired(string(id))
	case errors.Is(err, fs.ErrNotExist):
		return s, &Error{
			Code: CodeUnknownSnapshot, Msg: fmt.Sprintf("there is no snapshot %s", id),
			Hint: "deployx log lists them",
		}
	case err != nil:
		return s, err
	}
	if c, ok := h.Copied[s.Layer]; ok {
		s.Layer = c
	}
	if err := checkVersion(name, s.Version); err != nil {
		return s, err
	}
	r.keepTop(h, s)
	return s, nil
}

// readTop is the entry on top of the head, if it is id and has been read since the
// head was moved: it cannot change or go while the head names it, and each command
// asks for it some times.
func (r *Record) readTop(id ID) (Snapshot, bool) {
	r.headMu.Lock()
	defer r.headMu.Unlock()
	return r.top, r.top.ID == id
}

func (r *Record) keepTop(at Head, s Snapshot) {
	r.headMu.Lock()
	defer r.headMu.Unlock()
	if r.head.Seq == at.Seq && r.head.Snapshot == s.ID {
		r.top = s
	}
}

// All lists the ids of every entry on disk, oldest first, applied or not.
func (r *Record) All() ([]ID, error) {
	names, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []ID
	for _, n := range names { // sorted by name, so by time
		if id, ok := strings.CutSuffix(n.Name(), ".json"); ok && validID(id) {
			ids = append(ids, ID(id))
		}
	}
	return ids, nil
}

// Remove forgets entries. They must not be applied.
func (r *Record) Remove(ids ...ID) error {
	for _, id := range ids {
		err := os.Remove(r.path(string(id) + ".json"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// validID holds for whole ids and prefixes: hexadecimal digits and dashes.
func validID(s string) bool {
	return s != "" && len(s) <= 36 && strings.Trim(s, "0123456789abcdef-") == ""
}

func readJSON(name string, v any) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(v); err != nil {
		return &Error{
			Code: CodeInternal, Msg: fmt.Sprintf("%s does not parse", name), Err: err,
			Hint: "nothing was touched; put the file back from a backup, or move the tree's state directory aside to start anew from what is in the tree's base",
		}
	}
	return nil
}

func checkVersion(name string, v int) error {
	if v == Version {
		return nil
	}
	return &Error{
		Code: CodeUnsupported,
		Msg:  fmt.Sprintf("%s has version %d, this deployx knows version %d", name, v, Version),
		Hint: "use the deployx that wrote it; nothing was touched",
	}
}
