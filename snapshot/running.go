package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"deployx/internal/durable"
)

// runningSize is what the running file takes on disk from the start, so that
// writing it anew allocates nothing and needs one flush: measured here, a
// quarter of what a new file, a rename and a synced directory cost.
const runningSize = 16 << 10

// A note is what the running file holds: the command, and the move of the head
// that it was started after.
type note struct {
	Seq      uint64          `json:"seq"`
	Snapshot json.RawMessage `json:"snapshot"`
}

// noteAttr is the extended attribute of the running file that holds a note which
// need not be flushed. noteLong is what is sure to fit into it: ext4 has one
// block for all attributes of a file (xattr(7)).
const (
	noteAttr = "trusted.deployx.running"
	noteLong = 3 << 10
)

// Begin notes that s is about to run on top of the head. It must return before
// the command starts. The note holds until the head moves: a later reader that
// finds s on top of the head knows that it never finished.
//
// The note is durable when Begin returns, unless ordered says that a power cut
// which takes it takes what the command does too: the command works in a new
// layer, on a filesystem that keeps the order of changes to names and attributes
// (durable.Ordered). Then it is an attribute, and nothing is flushed. Else the
// file is overwritten in place. A write torn by a power cut fails its checksum
// and reads as "nothing was running", which is true: Begin had not returned. What
// does not fit is written aside and renamed in.
func (r *Record) Begin(s Snapshot, ordered bool) error {
	s.Version = Version
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if b, err = json.Marshal(note{r.at().Seq, b}); err != nil {
		return err
	}
	b = fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(b), b)
	name := r.path("running")
	if ordered && len(b) <= noteLong && unix.Lsetxattr(name, noteAttr, b, 0) == nil {
		return nil
	}
	if len(b) > runningSize {
		return durable.Write(name, b)
	}
	return overwrite(name, append(b, bytes.Repeat([]byte{'\n'}, runningSize-len(b))...))
}

func overwrite(name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return durable.Write(name, b)
	}
	if err != nil {
		return err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != int64(len(b)) {
		return errors.Join(err, f.Close(), durable.Write(name, b))
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		return errors.Join(err, f.Close())
	}
	return errors.Join(durable.SyncData(f), f.Close())
}

// Running finds the command that was started since the head was moved last and
// has not finished: it runs now, in the process that holds the tree's lock, or was cut
// off if nobody holds it.
func (r *Record) Running() (Snapshot, bool, error) {
	attr := make([]byte, noteLong)
	n, err := unix.Lgetxattr(r.path("running"), noteAttr, attr)
	if err == nil {
		if s, ok := r.noted(attr[:n]); ok {
			return s, ok, nil
		}
	}
	f, err := os.Open(r.path("running"))
	if errors.Is(err, fs.ErrNotExist) {
		return Snapshot{}, false, nil
	}
	if err != nil {
		return Snapshot{}, false, err
	}
	defer f.Close() //nolint:errcheck // read only
	b := make([]byte, noteStart)
	switch _, err := io.ReadFull(f, b); {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || err == nil && !r.current(b):
		return Snapshot{}, false, nil
	case err != nil:
		return Snapshot{}, false, err
	}
	rest, err := io.ReadAll(f)
	if err != nil {
		return Snapshot{}, false, err
	}
	s, ok := r.noted(append(b, rest...))
	return s, ok, nil
}

// Begun is Running, and tells whether the command runs: somebody holds lock, the tree's.
// If nobody does it was cut off, and the next who takes the lock records it so.
func (r *Record) Begun(lock string) (s Snapshot, runs, ok bool, err error) {
	if s, ok, err = r.Running(); err != nil || !ok || Locked(lock) {
		return s, ok, ok, err
	}
	// It may have ended since, which moves the head and the note with it.
	if err := r.Reload(); err != nil {
		return s, false, false, err
	}
	s, ok, err = r.Running()
	return s, false, ok, err
}

// noteStart is as much of a note as holds its number in any case: a checksum, the
// name of the field, 20 digits.
const noteStart = 64

// current tells whether a note that begins so may belong to the head: what does not is
// not worth a look at the rest.
func (r *Record) current(b []byte) bool {
	return len(b) >= 9 && bytes.HasPrefix(b[9:], fmt.Appendf(nil, `{"seq":%d,`, r.at().Seq))
}

// noted reads a note that belongs to the head.
func (r *Record) noted(b []byte) (s Snapshot, ok bool) {
	if !r.current(b) {
		return s, false
	}
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	sum, body, ok := bytes.Cut(line, []byte{' '})
	if !ok || fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)) != string(sum) {
		return s, false
	}
	var n note
	if json.Unmarshal(body, &n) != nil {
		return s, false
	}
	return s, json.Unmarshal(n.Snapshot, &s) == nil
}
