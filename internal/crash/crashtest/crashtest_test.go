package crashtest_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deployx/internal/crash/crashtest"
)

// TestPoints: the names are found in the source, and each is one.
func TestPoints(t *testing.T) {
	points, err := crashtest.Points("../../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"overlay.swapped", "record.moved", "fallback.log.synced", "session.begun", "durable.staged.*"} {
		if points[want] == nil {
			t.Errorf("%s was not found", want)
		}
	}
	for name, at := range points {
		if strings.HasPrefix(name, "*") {
			t.Errorf("%s: a point must have a name, or the beginning of one", at)
		}
	}
}

// TestUnkilled: a point that nobody died at is told, by its place.
func TestUnkilled(t *testing.T) {
	dir := t.TempDir()
	src := "package p\nfunc f(s string) {\n crash.Point(\"a\")\n crash.Point(\"b.\" + s)\n crash.Point(\"c\")\n crash.Point(\"d.\" + s)\n}\n"
	for name, text := range map[string]string{"p.go": src, "p_test.go": strings.ReplaceAll(src, "a", "e"), "killed": "a\nb.x\nc.x\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := crashtest.Unkilled(dir, filepath.Join(dir, "killed"))
	want := []string{filepath.Join(dir, "p.go:5:2") + ": c", filepath.Join(dir, "p.go:6:2") + ": d.*"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}
