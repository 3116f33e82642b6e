package treecmp

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// block is the unit in which contents are summed.
const block = 4096

// Sum is a digest of what r reads. It is the same for a hole and for zeroes:
// only blocks that are not all zeroes go in, each with its offset; the length
// is not part of it. Two files of one size have one sum when they read alike.
func Sum(r io.Reader) (string, error) {
	h := newSummer()
	if err := h.add(r, 0); err != nil {
		return "", err
	}
	return h.sum(), nil
}

// file sums f without reading its holes, and counts the bytes in them.
func (s summer) file(f *os.File, size int64) (sum string, holes int64, err error) {
	s.h.Reset()
	var at, summed int64
	for at < size {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			holes += size - at
			break
		}
		if err != nil {
			return "", 0, fmt.Errorf("seek data: %w", err)
		}
		end, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return "", 0, fmt.Errorf("seek hole: %w", err)
		}
		holes += data - at
		from := max(summed, data-data%block) // whole blocks, each once
		summed = max(from, (end+block-1)/block*block)
		if err := s.add(io.NewSectionReader(f, from, summed-from), from); err != nil {
			return "", 0, fmt.Errorf("read: %w", err)
		}
		at = end
	}
	return s.sum(), holes, nil
}

type summer struct {
	h    hash.Hash
	buf  []byte // a block
	zero []byte // one of zeroes
}

func newSummer() summer { return summer{sha256.New(), make([]byte, block), make([]byte, block)} }

// add sums what r reads as the contents at offset at, a multiple of block.
func (s summer) add(r io.Reader, at int64) error {
	for {
		n, err := io.ReadFull(r, s.buf)
		got := bytes.TrimRight(s.buf[:n], "\x00")
		if len(got) > 0 {
			var where [8]byte
			binary.BigEndian.PutUint64(where[:], uint64(at))
			s.h.Write(where[:])
			s.h.Write(got)
			s.h.Write(s.zero[:block-len(got)])
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s summer) sum() string { return hex.EncodeToString(s.h.Sum(nil)[:16]) }
