package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnePlace(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	open := func() *os.File {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() }) //nolint:errcheck // a test's
		return f
	}
	pipe := func() *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close(); w.Close() }) //nolint:errcheck // a test's
		return w
	}
	one, other, p, q := open(), open(), pipe(), pipe()
	for what, c := range map[string]struct {
		a, b io.Writer
		want bool
	}{
		"the same open file":     {&outlet{w: one}, again(t, one), true},
		"opened twice":           {&outlet{w: one}, other, false},
		"the same pipe":          {&outlet{w: p}, again(t, p), true},
		"two pipes":              {&outlet{w: p}, q, false},
		"a pipe and a file":      {&outlet{w: p}, one, false},
		"a file and the log":     {one, io.Discard, false},
		"what is no file at all": {io.Discard, io.Discard, false},
	} {
		if got := onePlace(c.a, c.b); got != c.want {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// again is what 2>&1 makes of f.
func again(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	g := os.NewFile(uintptr(fd), f.Name())
	t.Cleanup(func() { g.Close() }) //nolint:errcheck // a test's
	return g
}
