package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

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

// Begin notes, durably, that s is about to run on top of the head. It must
// return before the command starts. The note holds until the head moves: a
// later reader that finds s on top of the head knows that it never finished.
//
// The file is overwritten in place. A write torn by a power cut fails its
// checksum and reads as "nothing was running", which is true: Begin had not
// returned. What does not fit is written aside and renamed in.
func (r *Record) Begin(s Snapshot) error {
	s.Version = Version
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if b, err = json.Marshal(note{r.at().Seq, b}); err != nil {
		return err
	}
	b = fmt.Appendf(nil, "%08x %s\n", crc32.ChecksumIEEE(b), b)
	name := filepath.Join(r.dir, "running")
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
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return errors.Join(&fs.PathError{Op: "fdatasync", Path: name, Err: err}, f.Close())
	}
	return f.Close()
}

// Running finds the command that was started since the head was moved last and
// has not finished: it runs now, in the process that holds the tree's lock, or was cut
// off if nobody holds it.
func (r *Record) Running() (Snapshot, bool, error) {
	b, err := os.ReadFile(filepath.Join(r.dir, "running"))
	if errors.Is(err, fs.ErrNotExist) {
		return Snapshot{}, false, nil
	}
	if err != nil {
		return Snapshot{}, false, err
	}
	line, _, _ := bytes.Cut(b, []byte{'\n'})
	sum, body, ok := bytes.Cut(line, []byte{' '})
	if !ok || fmt.Sprintf("%08x", crc32.ChecksumIEEE(body)) != string(sum) {
		return Snapshot{}, false, nil
	}
	var n note
	if err := json.Unmarshal(body, &n); err != nil || n.Seq != r.at().Seq {
		return Snapshot{}, false, nil
	}
	var s Snapshot
	err = json.Unmarshal(n.Snapshot, &s)
	return s, err == nil, nil
}
