package session

import (
	"path/filepath"
	"strings"
)

// script is what the session's shell is given to run: the command, or another
// shell that runs it.
func (c Command) script() string {
	if c.Shell == "" {
		return c.Text
	}
	program := quote(c.Shell)
	if filepath.Base(c.Shell) == "busybox" {
		program += " sh" // which shell it is to be goes by the name
	}
	return program + " -c " + quote(c.Text)
}

// quote makes one word of s for any shell (POSIX XCU 2.2.2).
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
