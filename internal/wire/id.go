package wire

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxID is how many bytes the id of a command or batch may have.
const MaxID = 200

// ExpectedOfID tells what s would have to be, to be an id that somebody else gives to a
// command or batch; "" if it is one.
func ExpectedOfID(s string) string {
	switch {
	case len(s) > MaxID:
		return fmt.Sprintf("at most %d bytes", MaxID)
	case !utf8.ValidString(s):
		return "UTF-8"
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "no control characters"
	}
	return ""
}
