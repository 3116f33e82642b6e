package logdisk

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
)

// A request is one that the disk has served.
type request struct {
	kind byte // write, zero or flush
	off  int64
	data []byte // of a write
	len  int64  // of a zero
}

// The kinds of request. A zero is a discard too.
const (
	write = 'w'
	zero  = 'z'
	flush = 'f'
)

// blockSize is what an image keeps together, and what a disk writes whole or not
// at all: ext4 does not bear that its superblock of 1024 bytes is torn.
const blockSize = 4096

// An image is what a disk holds, by block. One that is not there is zeros; one
// that is does not change, so that images share them.
type image map[int64][]byte

func (i image) read(p []byte, off int64) {
	for len(p) > 0 {
		n := int(min(int64(len(p)), blockSize-off%blockSize))
		if b := i[off/blockSize]; b != nil {
			copy(p[:n], b[off%blockSize:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

// save writes the image to an empty file.
func (i image) save(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for at, b := range i {
		if _, err := f.WriteAt(b, at*blockSize); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

var zeros [blockSize]byte

func (i image) write(p []byte, off int64) {
	for len(p) > 0 {
		n := int(min(int64(len(p)), blockSize-off%blockSize))
		b := make([]byte, blockSize)
		copy(b, i[off/blockSize])
		copy(b[off%blockSize:], p[:n])
		if bytes.Equal(b, zeros[:]) {
			delete(i, off/blockSize)
		} else {
			i[off/blockSize] = b
		}
		p, off = p[n:], off+int64(n)
	}
}

func (i image) zero(off, n int64) {
	for n > 0 {
		k := min(n, blockSize-off%blockSize)
		i.write(zeros[:k], off)
		off, n = off+k, n-k
	}
}

func (i image) apply(r request) {
	switch r.kind {
	case write:
		i.write(r.data, r.off)
	case zero:
		i.zero(r.off, r.len)
	}
}

// applySome is apply for what a cache may have lost: a share of the requests is
// kept, and some are torn between two blocks.
func (i image) applySome(r request, rnd *rand.Rand, share float64) {
	switch roll := rnd.Float64(); {
	case roll < 0.1 && r.kind == write:
		for p, off := r.data, r.off; len(p) > 0; {
			n := int(min(int64(len(p)), blockSize-off%blockSize))
			if rnd.Float64() < share {
				i.write(p[:n], off)
			}
			p, off = p[n:], off+int64(n)
		}
	case rnd.Float64() < share:
		i.apply(r)
	}
}

// A log is a disk and all that it was sent. A flush covers the requests before
// it: one that was on its way when the flush came had not been confirmed, and
// nobody may count on either.
type log struct {
	mu       sync.Mutex
	requests []request
	now      image

	base image // after the first done requests
	done int
}

func newLog() *log { return &log{now: image{}, base: image{}} }

func (l *log) serve(r request) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.apply(r)
	l.requests = append(l.requests, r)
}

func (l *log) read(p []byte, off int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.read(p, off)
}

// kinds are the requests so far, a byte each.
func (l *log) kinds() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := make([]byte, len(l.requests))
	for i, r := range l.requests {
		k[i] = r.kind
	}
	return k
}

// cut is what the disk holds when the power has gone after n requests: all
// before the last flush among them, and those after it; of these, with a seed
// that is not 0, only some.
func (l *log) cut(n int, seed uint64) image {
	l.mu.Lock()
	defer l.mu.Unlock()
	flushed := n
	for flushed > 0 && l.requests[flushed-1].kind != flush {
		flushed--
	}
	if l.done > flushed {
		l.base, l.done = image{}, 0
	}
	for ; l.done < flushed; l.done++ {
		l.base.apply(l.requests[l.done])
	}
	img := maps.Clone(l.base)
	rnd := rand.New(rand.NewPCG(seed, uint64(n)))
	share := rnd.Float64()
	for _, r := range l.requests[flushed:n] {
		if seed == 0 {
			img.apply(r)
		} else {
			img.applySome(r, rnd, share)
		}
	}
	return img
}
