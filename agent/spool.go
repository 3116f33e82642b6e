package agent

import (
	"os"
	"path/filepath"
	"slices"
	"unicode/utf8"
)

const (
	// spoolBytes is what is kept of a command's output between the command and
	// the backend.
	spoolBytes = 16 << 20
	// spoolMemory is what is kept in memory, before there is a file.
	spoolMemory = 32 << 10
	// maxSegments bounds a command that alternates between its streams.
	maxSegments = 16 << 10
	// maxChunks bounds the chunks that can be sent again.
	maxChunks = 2048
)

// spool is a ring of output bytes: in memory while it is small, else in a file
// that has no name, so that nothing is left behind. Positions count from the
// command's start. It is not safe for concurrent use.
type spool struct {
	dir      string
	capacity int64
	f        *os.File
	mem      []byte

	written, cut, kept int64 // kept ≤ cut ≤ written: confirmed, in chunks, all
	segments           []segment
	chunks             []chunk // from kept on
	seq                int
	held               map[string][]byte // the start of a character, by stream
	scratch            []byte            // what was cut or read again last
	hole               bool              // output was dropped; the next segment says so
}

// segment is a piece that came from one stream, not yet cut into chunks.
type segment struct {
	stream string
	end    int64
	hole   bool // some of the output before it was dropped
}

// chunk is what goes out as one event, always with the same bytes.
type chunk struct {
	seq        int
	stream     string
	prefix     []byte // the start of its first character, from an earlier chunk
	start, end int64
}

func newSpool(dir string, capacity int64) *spool {
	return &spool{dir: dir, capacity: capacity, held: map[string][]byte{}}
}

// room is how much can be written now.
func (s *spool) room() int64 {
	if len(s.segments) >= maxSegments || len(s.chunks) >= maxChunks {
		return 0
	}
	return s.capacity - (s.written - s.kept)
}

// write takes p, for which there is room.
func (s *spool) write(stream string, p []byte) error {
	if err := s.store(p); err != nil {
		return err
	}
	s.written += int64(len(p))
	if n := len(s.segments); n > 0 && s.segments[n-1].stream == stream && !s.hole {
		s.segments[n-1].end = s.written
		return nil
	}
	s.segments = append(s.segments, segment{stream, s.written, s.hole})
	s.hole = false
	return nil
}

func (s *spool) store(p []byte) error {
	if s.f == nil && s.written+int64(len(p)) <= spoolMemory {
		s.mem = append(s.mem, p...)
		return nil
	}
	if s.f == nil {
		if err := s.spill(); err != nil {
			return err
		}
	}
	for at := s.written; len(p) > 0; {
		off := at % s.capacity
		n := min(int64(len(p)), s.capacity-off)
		if _, err := s.f.WriteAt(p[:n], off); err != nil {
			return err
		}
		p, at = p[n:], at+n
	}
	return nil
}

// spill goes from memory to a file.
func (s *spool) spill() error {
	f, err := os.CreateTemp(s.dir, "output-")
	if err != nil {
		return err
	}
	_ = os.Remove(f.Name()) // open tidies up what stays
	if _, err := f.WriteAt(s.mem, 0); err != nil {
		_ = f.Close()
		return err
	}
	s.f, s.mem = f, nil
	return nil
}

// read puts what is stored from start to end behind prefix, in scratch.
func (s *spool) read(prefix []byte, start, end int64) ([]byte, error) {
	p := append(s.scratch[:0], prefix...)
	p = slices.Grow(p, int(end-start))
	s.scratch = p
	if s.f == nil {
		return append(p, s.mem[start:end]...), nil
	}
	n := len(p)
	p = p[:n+int(end-start)]
	for b, at := p[n:], start; len(b) > 0; {
		off := at % s.capacity
		n := min(int64(len(b)), s.capacity-off)
		if _, err := s.f.ReadAt(b[:n], off); err != nil {
			return nil, err
		}
		b, at = b[n:], at+n
	}
	return p, nil
}

// next cuts the next chunk, of at most limit bytes, and returns its text, nil
// if there is none. end says that no more will be written: then nothing is held
// back. The text is good until the next call.
func (s *spool) next(limit int64, end bool) (chunk, []byte, error) {
	for len(s.segments) > 0 {
		g := s.segments[0]
		stop := min(g.end, s.cut+limit)
		prefix := s.held[g.stream]
		p, err := s.read(prefix, s.cut, stop)
		if err != nil {
			return chunk{}, nil, err
		}
		if g.hole {
			s.seq++
			s.segments[0].hole = false
		}
		whole := p[:len(p)-partial(p)]
		s.held[g.stream] = slices.Clone(p[len(whole):])
		c := chunk{s.seq, g.stream, prefix, s.cut, s.cut + int64(len(whole)-len(prefix))}
		if s.cut = stop; s.cut == g.end {
			s.segments = s.segments[1:]
		}
		if len(whole) > 0 {
			s.keep(c)
			return c, whole, nil
		}
	}
	if end {
		c, held := s.rest()
		return c, held, nil
	}
	return chunk{}, nil, nil
}

// partial is the length of the start of a character at the end of p.
func partial(p []byte) int {
	for i := 1; i <= min(utf8.UTFMax-1, len(p)); i++ {
		if utf8.RuneStart(p[len(p)-i]) {
			if utf8.FullRune(p[len(p)-i:]) {
				return 0
			}
			return i
		}
	}
	return 0
}

// rest cuts what was held back at the end of the streams.
func (s *spool) rest() (chunk, []byte) {
	for name, held := range s.held {
		if len(held) > 0 {
			delete(s.held, name)
			c := chunk{s.seq, name, held, s.cut, s.cut}
			s.keep(c)
			return c, held
		}
	}
	return chunk{}, nil
}

// holds says whether the start of a character waits for its rest.
func (s *spool) holds() bool {
	for _, held := range s.held {
		if len(held) > 0 {
			return true
		}
	}
	return false
}

func (s *spool) keep(c chunk) {
	s.seq++
	s.chunks = append(s.chunks, c)
}

// again reads a chunk that was cut before, as next does.
func (s *spool) again(c chunk) ([]byte, error) { return s.read(c.prefix, c.start, c.end) }

// confirm drops the first n chunks: they need not be sent again.
func (s *spool) confirm(n int) {
	s.chunks = append(s.chunks[:0], s.chunks[n:]...)
	s.kept = s.cut
	if len(s.chunks) > 0 {
		s.kept = s.chunks[0].start
	}
}

func (s *spool) close() error {
	s.mem, s.chunks, s.segments, s.scratch = nil, nil, nil, nil
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

// sweepSpools removes what a killed agent left in the moment between making a
// file and removing its name.
func sweepSpools(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "output-*"))
	for _, n := range names {
		_ = os.Remove(n) // the next start tries again
	}
	return err
}

// escaped is how many bytes JSON may need for n bytes of text: \u0000 is six.
const escaped = 6

// fit is the largest chunk whose event stays under half of what the backend
// takes at once.
func fit(maxPayload, chunkBytes int) int64 {
	return int64(max(utf8.UTFMax, min(chunkBytes, (maxPayload/2-1024)/escaped)))
}
