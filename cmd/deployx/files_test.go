package main

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"deployx/internal/crash"
	"deployx/internal/testns"
)

// envFiles names the file in which every deployx of a script notes what is in its
// state directory, at each point at which it could be killed.
const envFiles = "DEPLOYX_TEST_FILES"

// TestFiles: every path in the state directory is one of the tables of docs/design.md
// and docs/copy-driver.md, and each of these is there at one time or another while
// all is used once.
func TestFiles(t *testing.T) {
	design, copying := fileTable(t, "design.md", "trees/"), fileTable(t, "copy-driver.md", "trees/NAME/layers/")
	layered := func(e fileEntry) bool { return strings.HasPrefix(e.path, "trees/NAME/layers/") }
	tables := map[string][]fileEntry{"": design, "copy": append(slices.DeleteFunc(slices.Clone(design), layered), copying...)}
	seen := map[string]map[string]string{"": {}, "copy": {}}
	for _, driver := range []string{"", "copy"} {
		t.Run(or(driver, "auto"), func(t *testing.T) {
			testns.Need(t)
			p := scripts("testdata/files", driver)
			p.WorkdirRoot = shortDir(t)
			setup, note := p.Setup, filepath.Join(t.TempDir(), "seen")
			p.Setup = func(e *testscript.Env) error {
				e.Setenv(envFiles, note)
				return setup(e)
			}
			t.Cleanup(func() { readNotes(t, note, seen[driver]) })
			testscript.Run(t, p)
		})
	}
	for driver, table := range tables {
		for path, dir := range seen[driver] {
			if !slices.ContainsFunc(table, func(e fileEntry) bool { return e.is(path) || e.holds(path) }) {
				t.Errorf("no table has %s, seen in %s", path, dir)
			}
		}
		for _, e := range table {
			found := false
			for path := range seen[driver] {
				found = found || e.is(path)
			}
			why, known := notSeen[driver+":"+e.path]
			switch {
			case !found && !known:
				t.Errorf("%s was never there: driver %q", e.path, driver)
			case found && known:
				t.Errorf("%s was there, so it need not be left out: %s", e.path, why)
			}
		}
	}
}

// notSeen are the entries that the script does not bring about, and why.
var notSeen = map[string]string{
	":trees/NAME/layers/ID/back":          "somebody must open a file in the microseconds before a swap: overlay.TestGoBack",
	":trees/NAME/layers/aside/ID":         "the same, and what is written cannot be taken along: overlay.TestGoBackBoth",
	":trees/NAME/layers/proof":            "readers by path must keep an unmount from being done at once: overlay.TestUnproven",
	":trees/NAME/layers/stage":            "old kernels: overlay.TestConformance",
	"copy:trees/NAME/usage":               "the index tells that",
	"copy:trees/NAME/layers/restore.next": "a full disk: fallback.TestCrashLean",
}

// fileEntry is one path of a table.
type fileEntry struct {
	path     string
	self, in *regexp.Regexp   // it, and what is in it
	above    []*regexp.Regexp // the directories that lead to it
}

func (e fileEntry) is(path string) bool { return e.self.MatchString(path) }

func (e fileEntry) holds(path string) bool {
	return e.in.MatchString(path) || slices.ContainsFunc(e.above, func(r *regexp.Regexp) bool { return r.MatchString(path) })
}

func newFileEntry(path string) fileEntry {
	e := fileEntry{path: path, self: pattern(path, "(\\.tmp)?$"), in: pattern(path, "/")}
	for dir := filepath.Dir(path); dir != "."; dir = filepath.Dir(dir) {
		e.above = append(e.above, pattern(dir, "$"))
	}
	return e
}

// fileTable reads the first table of a document whose head is "path". What belongs to
// a tree or to its driver is below the directory below.
func fileTable(t *testing.T, doc, below string) (list []fileEntry) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "docs", doc))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "| path | holds |\n|---|---|\n")
	rows, _, _ := strings.Cut(rest, "\n\n")
	for row := range strings.Lines(rows) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(row, "| "), " | ")
		dir := ""
		for _, name := range regexp.MustCompile("`[^`]+`").FindAllString(cell, -1) {
			path := strings.Trim(name, "`/")
			if dir == "" && path != "lock" && !strings.HasPrefix(path, "trees/") || below != "trees/" {
				path = below + path
			}
			if dir != "" {
				path = filepath.Join(dir, path)
			}
			dir = filepath.Dir(path)
			list = append(list, newFileEntry(path))
		}
	}
	if len(list) < 10 {
		t.Fatalf("docs/%s has a table of %d files", doc, len(list))
	}
	return list
}

// pattern is a path of a table with what its capitals stand for.
func pattern(path, end string) *regexp.Regexp {
	for word, what := range map[string]string{
		"NAME": "[A-Za-z0-9_-]+-[0-9a-f]{12}", "HASH": "[0-9a-f]{32}", "ID": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "N": "[0-9a-f]+",
	} {
		path = regexp.MustCompile(`\b`+word+`\b`).ReplaceAllString(path, what)
	}
	return regexp.MustCompile("^" + strings.ReplaceAll(path, ".", `\.`) + end)
}

func readNotes(t *testing.T, name string, seen map[string]string) {
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return
	}
	defer f.Close() //nolint:errcheck // read only
	for s := bufio.NewScanner(f); s.Scan(); {
		path, dir, _ := strings.Cut(s.Text(), "\t")
		seen[path] = dir
	}
}

// noteFiles has every path of the state directory noted once at each point of this
// process, and at its end.
func noteFiles() (last func()) {
	out, err := os.OpenFile(os.Getenv(envFiles), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	noted := map[string]bool{}
	state := defaultState()
	// What these hold is a tree's own.
	contents := regexp.MustCompile(`/layers/([^/]+/[uws]|base|stage/.*|proof|capture/.*|merged/.*|trash/.*|aside/.*|copied/.*)$`)
	passed := map[string]int{}
	var mu sync.Mutex // layers are merged beside commands
	note := func(point string) {
		mu.Lock()
		defer mu.Unlock()
		if passed[point]++; passed[point] > 3 { // some are passed for each file
			return
		}
		_ = filepath.WalkDir(state, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // what goes meanwhile is gone
			rel, _ := filepath.Rel(state, path)
			if err != nil || rel == "." {
				return nil
			}
			if !noted[rel] {
				noted[rel] = true
				if _, err := out.WriteString(rel + "\t" + state + "\n"); err != nil {
					panic(err)
				}
			}
			if d.IsDir() && contents.MatchString(rel) {
				return fs.SkipDir
			}
			return nil
		})
	}
	crash.SetHook(note)
	return func() { note("") }
}
