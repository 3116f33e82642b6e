package socketio

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
)

// maxDepth of nested JSON. encoding/json, which the handlers will use on the
// arguments, stops at the same depth.
const maxDepth = 10_000

var errNotJSON = errors.New("not JSON")

// splitArray checks that data is a JSON array and cuts it into its elements,
// which share its memory. It exists because encoding/json scans a large argument
// three times and copies it, and its state machine takes a call for each byte:
// that was a third of the time of a stream of output. FuzzPacket holds it
// against encoding/json.
func splitArray(data []byte) ([]json.RawMessage, error) {
	s := scanner{data: data}
	s.space()
	if !s.take('[') {
		return nil, fmt.Errorf("%q is no array", clip(data))
	}
	var args []json.RawMessage
	err := s.list(']', 1, func() error {
		start := s.at
		if err := s.value(1); err != nil {
			return err
		}
		args = append(args, data[start:s.at:s.at]) // capped: appending to one cannot reach its neighbour
		return nil
	})
	if err == nil {
		err = s.end()
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w", clip(data), err)
	}
	return args, nil
}

// scanner goes over JSON text (RFC 8259).
type scanner struct {
	data []byte
	at   int
}

func (s *scanner) space() {
	for s.at < len(s.data) {
		switch s.data[s.at] {
		case ' ', '\t', '\r', '\n':
			s.at++
		default:
			return
		}
	}
}

// peek is the byte at hand, or 0 at the end, which is in no token.
func (s *scanner) peek() byte {
	if s.at < len(s.data) {
		return s.data[s.at]
	}
	return 0
}

func (s *scanner) take(c byte) bool {
	if s.peek() != c {
		return false
	}
	s.at++
	return true
}

// end wants nothing but space.
func (s *scanner) end() error {
	s.space()
	if s.at != len(s.data) {
		return errNotJSON
	}
	return nil
}

// value goes over one value, which starts here.
func (s *scanner) value(depth int) error {
	switch s.peek() {
	case '"':
		return s.text()
	case '{':
		s.at++
		return s.list('}', depth+1, func() error {
			if err := s.text(); err != nil {
				return err
			}
			s.space()
			if !s.take(':') {
				return errNotJSON
			}
			s.space()
			return s.value(depth + 1)
		})
	case '[':
		s.at++
		return s.list(']', depth+1, func() error { return s.value(depth + 1) })
	case 't':
		return s.word("true")
	case 'f':
		return s.word("false")
	case 'n':
		return s.word("null")
	}
	return s.number()
}

// list goes over elements, commas and the closing bracket.
func (s *scanner) list(closing byte, depth int, element func() error) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	s.space()
	if s.take(closing) {
		return nil
	}
	for {
		s.space()
		if err := element(); err != nil {
			return err
		}
		s.space()
		if s.take(closing) {
			return nil
		}
		if !s.take(',') {
			return errNotJSON
		}
	}
}

func (s *scanner) word(w string) error {
	if len(s.data)-s.at < len(w) || string(s.data[s.at:s.at+len(w)]) != w {
		return errNotJSON
	}
	s.at += len(w)
	return nil
}

func (s *scanner) text() error {
	if !s.take('"') {
		return errNotJSON
	}
	for i := s.at; i < len(s.data); i++ {
		i += plain(s.data[i:])
		if i == len(s.data) {
			break
		}
		switch c := s.data[i]; {
		case c == '"':
			s.at = i + 1
			return nil
		case c < ' ':
			return errNotJSON
		case c == '\\':
			n := escapeLen(s.data[i+1:])
			if n == 0 {
				return errNotJSON
			}
			i += n
		}
	}
	return errNotJSON
}

// plain is how many bytes of p, in eights, hold no quote, backslash or control
// character for sure ("Determine if a word has a byte less than n", Bit Twiddling
// Hacks; bytes from 0x80 on count as doubtful).
func plain(p []byte) int {
	const ones, high = 0x0101010101010101, 0x8080808080808080
	n := 0
	for len(p)-n >= 8 {
		x := binary.LittleEndian.Uint64(p[n:])
		quote, back := x^('"'*ones), x^('\\'*ones)
		if (x|(x-' '*ones)|(quote-ones)|(back-ones))&high != 0 {
			break
		}
		n += 8
	}
	return n
}

// escapeLen is how long the escape is whose backslash stands before p, or 0.
func escapeLen(p []byte) int {
	if len(p) == 0 {
		return 0
	}
	switch p[0] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 1
	case 'u':
		if len(p) < 5 {
			return 0
		}
		for _, c := range p[1:5] {
			if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'f') {
				return 0
			}
		}
		return 5
	}
	return 0
}

func (s *scanner) number() error {
	s.take('-')
	if !s.take('0') && s.digits() == 0 {
		return errNotJSON
	}
	if s.take('.') && s.digits() == 0 {
		return errNotJSON
	}
	if s.take('e') || s.take('E') {
		if !s.take('+') {
			s.take('-')
		}
		if s.digits() == 0 {
			return errNotJSON
		}
	}
	return nil
}

func (s *scanner) digits() int {
	start := s.at
	for c := s.peek(); c >= '0' && c <= '9'; c = s.peek() {
		s.at++
	}
	return s.at - start
}
