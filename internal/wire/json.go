package wire

import (
	"encoding/binary"
	"unicode/utf8"
)

// AppendText appends p as a JSON string. Bytes that are no UTF-8 become U+FFFD
// each, as in encoding/json, which takes some three times as long over long texts.
func AppendText(b, p []byte) []byte {
	b = append(b, '"')
	for len(p) > 0 {
		n := plain(p)
		b, p = append(b, p[:n]...), p[n:]
		if len(p) == 0 {
			break
		}
		if p[0] < utf8.RuneSelf {
			b, p = appendEscape(b, p[0]), p[1:]
			continue
		}
		r, size := utf8.DecodeRune(p)
		b, p = utf8.AppendRune(b, r), p[size:]
	}
	return append(b, '"')
}

// plain is how many bytes at the start of p stand for themselves: ASCII without
// control characters, quotes and backslashes. Eight bytes are looked at together
// ("Determine if a word has a byte less than n", Bit Twiddling Hacks); a wrong
// alarm only leads to the slow loop.
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
	for n < len(p) && p[n] >= ' ' && p[n] < utf8.RuneSelf && p[n] != '"' && p[n] != '\\' {
		n++
	}
	return n
}

func appendEscape(b []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(b, '\\', c)
	case '\n':
		return append(b, '\\', 'n')
	case '\r':
		return append(b, '\\', 'r')
	case '\t':
		return append(b, '\\', 't')
	}
	const hex = "0123456789abcdef"
	return append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
}
