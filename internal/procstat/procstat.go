// Package procstat reads the stat files of processes and threads.
package procstat

import (
	"bytes"
	"os"
	"strings"
)

// Indices into Fields: the third field of proc_pid_stat(5) is the first.
const (
	State   = 0
	Parent  = 1
	Session = 3
	UTime   = 11 // in ticks
	STime   = 12
	Started = 19 // in ticks since boot
)

// Fields are the fields of a stat file (/proc/PID/stat, /proc/PID/task/TID/stat)
// behind the name, which may hold anything; the kernel writes all that are named here.
// nil if the process is gone.
func Fields(file string) []string {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) <= Started {
		return nil
	}
	return f
}
