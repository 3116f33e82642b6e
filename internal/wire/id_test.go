package wire

import (
	"strings"
	"testing"
)

func TestExpectedOfID(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "deploy 42": "", "é": "", strings.Repeat("i", MaxID): "",
		strings.Repeat("i", MaxID+1): "at most 200 bytes", "a\x1b[31m": "no control characters", "a\nb": "no control characters",
		"\x7f": "no control characters", "\x00": "no control characters", "\xff": "UTF-8",
	} {
		if got := ExpectedOfID(s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
}
