package procstat_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"deployx/internal/procstat"
)

func TestFields(t *testing.T) {
	f := procstat.Fields("/proc/self/stat") // its first thread, which may sleep
	if f == nil || len(f[procstat.State]) != 1 || f[procstat.Parent] != strconv.Itoa(os.Getppid()) {
		t.Errorf("of this process: %q", f)
	}
	name := filepath.Join(t.TempDir(), "stat")
	text := "7 (a) S 9 (b) 1) T 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23\n"
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if f := procstat.Fields(name); f == nil || f[procstat.State] != "T" || f[procstat.Parent] != "3" {
		t.Errorf("with brackets in the name: %q", f)
	}
	for _, torn := range []string{"", "7 (a", "7 (a) S 1"} {
		if err := os.WriteFile(name, []byte(torn), 0o600); err != nil {
			t.Fatal(err)
		}
		if f := procstat.Fields(name); f != nil {
			t.Errorf("of %q: %q", torn, f)
		}
	}
	if f := procstat.Fields("/proc/0/stat"); f != nil {
		t.Errorf("of no process: %q", f)
	}
}
