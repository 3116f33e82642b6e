package wire

import "unicode/utf8"

// Text cuts a stream of bytes into pieces that are whole UTF-8 where the stream
// is: a character split between two writes is held back until its rest comes.
// The zero value is ready.
type Text struct{ held []byte }

// Next takes p and returns what can be sent.
func (t *Text) Next(p []byte) []byte {
	p = append(t.held, p...)
	n := len(p)
	for i := 1; i <= min(utf8.UTFMax-1, len(p)); i++ {
		if c := p[len(p)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(p[len(p)-i:]) {
				n = len(p) - i
			}
			break
		}
	}
	t.held = append([]byte(nil), p[n:]...)
	return p[:n]
}

// Rest returns what was held back at the end of the stream.
func (t *Text) Rest() []byte {
	p := t.held
	t.held = nil
	return p
}
