package wire

import (
	"encoding/json"
	"strings"
	"testing"
)

func checkText(t *testing.T, p []byte) {
	t.Helper()
	got := AppendText(nil, p)
	b, err := json.Marshal(string(p))
	if err != nil {
		t.Fatal(err)
	}
	var want, back string
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(got, &back); err != nil || back != want {
		t.Errorf("%q became %s, which reads as %q, not %q: %v", p, got, back, want, err)
	}
}

func TestAppendText(t *testing.T) {
	var all []byte
	for c := range 256 {
		all = append(all, byte(c))
		// Each byte at each place of a word, and in the rest behind words.
		for i := range 11 {
			p := []byte("abcdefghijk")
			p[i] = byte(c)
			checkText(t, p)
		}
	}
	checkText(t, all)
	for _, s := range []string{"", "é", "\u2028 \U0001F600", "x\xe2\x82", "\xed\xa0\x80", strings.Repeat("plain text, ", 100)} {
		checkText(t, []byte(s))
	}
}

func FuzzAppendText(f *testing.F) {
	f.Add([]byte("a\"b\\c\n\x00\xff é"))
	f.Fuzz(func(t *testing.T, p []byte) { checkText(t, p) })
}

func BenchmarkAppendText(b *testing.B) {
	p := []byte(strings.Repeat("The quick brown fox jumps over the lazy dog, and then some more of that.\n", 900))
	var buf []byte
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			buf = AppendText(buf[:0], p)
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		b.SetBytes(int64(len(p)))
		for b.Loop() {
			buf, _ = json.Marshal(string(p))
		}
	})
}
