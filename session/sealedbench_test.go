package session

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// BenchmarkSealed is a command in a tree that is pinned, beside one that is not.
func BenchmarkSealed(b *testing.B) {
	for _, c := range []struct {
		name    string
		pinned  bool
		touched int // files of 10 kB that others write before each command
		text    string
	}{
		{"unpinned", false, 0, "true"},
		{"pinned", true, 0, "true"},
		{"pinned_one_file", true, 0, "echo x >> f"},
		{"pinned_1000_files", true, 1000, "true"},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b)
			r.run("cd $DEPLOYX_TREE; echo > f; mkdir d")
			if c.pinned {
				hold(b, r.tree)
			}
			data := make([]byte, 10<<10)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				for f := range c.touched {
					data[0] = byte(i)
					if err := os.WriteFile(filepath.Join(r.tree, "d", fmt.Sprint(f)), data, 0o644); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				r.run(c.text)
			}
		})
	}
}
