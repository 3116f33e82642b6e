package session

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A files is what a tree holds: type, mode and content by path.
type files map[string]string

func readFiles(t testing.TB, tree string) files {
	t.Helper()
	f := files{}
	err := filepath.WalkDir(tree, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		v, err := value(path)
		f[strings.TrimPrefix(path, tree+"/")] = v
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func value(path string) (string, error) {
	fi, err := os.Lstat(path)
	if err != nil || fi.IsDir() {
		return "dir", err
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(path)
		return "-> " + to, err
	}
	b, err := os.ReadFile(path)
	return fmt.Sprintf("%o %s", fi.Mode().Perm(), b), err
}

// A change is one step of a command, as shell text that can be repeated and
// never fails, and as what it makes of a tree.
type change struct {
	Kind string
	Path string
	To   string // the content, or the new name
}

var (
	killerDirs  = []string{"d0", "d1", "d2"}
	killerFiles = []string{"f0", "f1", "f2", "d0/f0", "d0/f1", "d1/f0", "d1/f1", "d2/f0"}
)

func randomChange(r *rand.Rand, token string) change {
	file, dir := killerFiles[r.IntN(len(killerFiles))], killerDirs[r.IntN(len(killerDirs))]
	switch r.IntN(10) {
	case 0:
		return change{"remove", file, ""}
	case 1:
		return change{"remove", dir, ""}
	case 2, 3:
		return change{"move", dir, killerDirs[r.IntN(len(killerDirs))]}
	case 4:
		return change{"chmod", file, []string{"600", "755"}[r.IntN(2)]}
	case 5:
		return change{"append", file, token}
	}
	return change{"write", file, token}
}

func (c change) text() string {
	dir := filepath.Dir(c.Path)
	switch c.Kind {
	case "remove":
		return "rm -rf " + c.Path
	case "move":
		if c.Path == c.To {
			return ":"
		}
		return fmt.Sprintf("if [ -d %s ]; then rm -rf %s; mv %s %s; fi", c.Path, c.To, c.Path, c.To)
	case "chmod":
		return fmt.Sprintf("if [ -e %s ]; then chmod %s %s; fi", c.Path, c.To, c.Path)
	case "append":
		return fmt.Sprintf("mkdir -p %s; echo %s >> %s", dir, c.To, c.Path)
	}
	return fmt.Sprintf("mkdir -p %s; echo %s > %s", dir, c.To, c.Path)
}

// apply gives what c makes of f, which stays.
func (c change) apply(f files) files {
	f = maps.Clone(f)
	old, there := f[c.Path]
	switch {
	case c.Kind == "remove":
		removeBelow(f, c.Path)
	case c.Kind == "move" && there && c.Path != c.To:
		removeBelow(f, c.To)
		for p, v := range maps.Clone(f) {
			if p == c.Path || strings.HasPrefix(p, c.Path+"/") {
				delete(f, p)
				f[c.To+p[len(c.Path):]] = v
			}
		}
	case c.Kind == "chmod" && there:
		f[c.Path] = c.To + old[3:]
	case c.Kind == "append" || c.Kind == "write":
		if dir := filepath.Dir(c.Path); dir != "." {
			f[dir] = "dir"
		}
		if !there {
			old = "644 "
		}
		if c.Kind == "write" {
			old = old[:4]
		}
		f[c.Path] = old + c.To + "\n"
	}
	return f
}

func removeBelow(f files, path string) {
	maps.DeleteFunc(f, func(p, _ string) bool { return p == path || strings.HasPrefix(p, path+"/") })
}

// stages are the trees before a command, after each of its changes, and at its
// end. What a move replaces is gone before.
func stages(f files, cs []change) []files {
	all := []files{f}
	for _, c := range cs {
		if _, there := f[c.Path]; c.Kind == "move" && there && c.Path != c.To {
			all = append(all, change{"remove", c.To, ""}.apply(f))
		}
		f = c.apply(f)
		all = append(all, f)
	}
	return all
}

// partOf tells what is wrong with a tree for one where a command was cut off:
// each path is as at one of its stages, or, if it was changed at all, gone or not
// all written: emptied, or with zeros to its end, for ext4 makes a size last
// before the bytes.
func partOf(got files, all []files) (wrong []string) {
	paths := maps.Clone(got)
	for _, f := range all {
		maps.Copy(paths, f)
	}
	for p := range paths {
		seen := map[string]bool{}
		for _, f := range all {
			seen[f[p]] = true // "" is gone
		}
		if g := got[p]; !seen[g] && (len(seen) == 1 || g != "" && !unwritten(g, seen)) {
			wrong = append(wrong, fmt.Sprintf("%s: %q", p, g))
		}
	}
	slices.Sort(wrong)
	return wrong
}

func unwritten(g string, of map[string]bool) bool {
	written := strings.TrimRight(g, "\x00")
	if len(written) == 4 && written[3] == ' ' {
		return true
	}
	for s := range of {
		if len(g) > len(written) && strings.HasPrefix(s, written) && len(g) <= len(s) {
			return true
		}
	}
	return false
}

// unlike tells how two trees differ.
func unlike(want, got files) (d []string) {
	paths := maps.Clone(want)
	maps.Copy(paths, got)
	for p := range paths {
		if want[p] != got[p] {
			d = append(d, fmt.Sprintf("%s: want %q, got %q", p, want[p], got[p]))
		}
	}
	slices.Sort(d)
	return d
}
