package fallback

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/durable"
)

// wal is the file of transactions since the index was written. A transaction
// is there whole or not at all: its frame has a length and a checksum.
type wal struct {
	path string
	f    *os.File
	end  int64 // of the last whole transaction
	err  error // the end of the file is in doubt: nothing more may be added

	readOnly bool // the filesystem was, when it was opened
}

const walMagic = "deployx copy log 1\n"

const frameHead = 8 // length and checksum, little endian

func appendUint32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(b, v) }
func uint32At(b []byte) uint32               { return binary.LittleEndian.Uint32(b) }

// openLog opens the log, making it if it is not there.
func openLog(path string) (*wal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		if err = durable.Write(path, []byte(walMagic)); err == nil {
			f, err = os.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0)
		}
	}
	readOnly := errors.Is(err, unix.EROFS)
	if readOnly {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	}
	if err != nil {
		return nil, err
	}
	return &wal{path: path, f: f, readOnly: readOnly}, nil
}

// replay hands every transaction from byte offset from on to apply; 0 is the
// beginning. A torn last transaction was never promised to anybody and is cut
// off; damage before it is an error.
func (w *wal) replay(from int64, apply func(*tx) error) error {
	st, err := w.f.Stat()
	if err != nil || st.Size() == from {
		return err
	}
	b := make([]byte, max(st.Size()-from, 0))
	if _, err := w.f.ReadAt(b, from); err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	pos := 0
	if from == 0 {
		if pos = len(walMagic); len(b) < pos || string(b[:pos]) != walMagic {
			return unknownVersion(w.path)
		}
		w.err = nil
	}
	for {
		body, next := frame(b, pos)
		if body == nil {
			break
		}
		d := &decoder{s: string(body)}
		t := decodeTx(d)
		if d.err != nil {
			return fmt.Errorf("%s at byte %d: %w", w.path, from+int64(pos), d.err)
		}
		if err := apply(t); err != nil {
			return err
		}
		pos = next
	}
	w.end = from + int64(pos)
	if pos == len(b) {
		return nil
	}
	if wholeFrameAfter(b, pos) {
		return fmt.Errorf("%s at byte %d: %w", w.path, from+int64(pos), errDamaged)
	}
	return w.cut()
}

// frame gives the body of the transaction at pos, nil if it is not whole.
func frame(b []byte, pos int) (body []byte, next int) {
	if len(b)-pos < frameHead {
		return nil, 0
	}
	n, sum := int(uint32At(b[pos:])), uint32At(b[pos+4:])
	pos += frameHead
	if n == 0 || n > len(b)-pos || checksum(b[pos:pos+n]) != sum {
		return nil, 0
	}
	return b[pos : pos+n], pos + n
}

// wholeFrameAfter tells damage from a torn end: after a torn end nothing
// follows.
func wholeFrameAfter(b []byte, pos int) bool {
	if len(b)-pos < frameHead {
		return false
	}
	n := int(uint32At(b[pos:]))
	if n == 0 || n > len(b)-pos-frameHead {
		return false
	}
	body, _ := frame(b, pos+frameHead+n)
	return body != nil
}

// cut takes everything after the last whole transaction off.
func (w *wal) cut() error {
	if err := w.f.Truncate(w.end); err != nil {
		w.err = fmt.Errorf("log is in doubt: %w", err)
		return w.err
	}
	return nil
}

// reserve makes room, so that adding n bytes cannot fail for want of it
// (fallocate(2) without changing the size). Where the filesystem cannot, the
// add itself tells.
func (w *wal) reserve(n int) error {
	err := unix.Fallocate(int(w.f.Fd()), unix.FALLOC_FL_KEEP_SIZE, w.end, int64(n+frameHead))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return sysError("fallocate", w.path, err)
	}
	return nil
}

// add appends t; with sync it is on disk when add returns, without one it will
// be when the next is. On error the log is as it was.
func (w *wal) add(t *tx, sync bool) error {
	if w.err != nil {
		return w.err
	}
	if w.readOnly {
		return sysError("write", w.path, unix.EROFS)
	}
	body := t.encode()
	b := make([]byte, 0, len(body)+frameHead)
	b = appendUint32(b, uint32(len(body)))
	b = appendUint32(b, checksum(body))
	b = append(b, body...)
	if _, err := w.f.WriteAt(b, w.end); err != nil {
		return errors.Join(fmt.Errorf("write log: %w", err), w.cut())
	}
	crash.Point("fallback.log.written")
	if sync {
		if err := unix.Fdatasync(int(w.f.Fd())); err != nil {
			// What a failed sync left on disk cannot be known (fsync(2)).
			w.err = sysError("fdatasync", w.path, err)
			return errors.Join(w.err, w.cut())
		}
	}
	w.end += int64(len(b))
	crash.Point("fallback.log.synced")
	return nil
}

// reset empties the log: all of it is in the index.
func (w *wal) reset() error {
	w.end = int64(len(walMagic))
	return w.cut()
}
