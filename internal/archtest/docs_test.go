package archtest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDocs: what the documents name as the test of a claim, or as the file that has the
// code, is there.
func TestDocs(t *testing.T) {
	root := filepath.Join("..", "..")
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests, scripts := defined(t, root)
	test := regexp.MustCompile(`\b(?:([a-z]+)\.)?((?:Test|Benchmark)[A-Z]\w*\*?)`)
	file := regexp.MustCompile("`((?:cmd|overlay|session|fallback|snapshot|shell|socketio|agent|internal|integration|scripts|examples|docs)/[\\w/.*-]*)`")
	script := regexp.MustCompile(`\b(\w+\*?)\.txtar`)
	named := 0
	for _, doc := range append(docs, filepath.Join(root, "README.md")) {
		b, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range test.FindAllStringSubmatch(string(b), -1) {
			if named++; !has(tests, m[1], m[2]) {
				t.Errorf("%s: there is no %s", doc, m[0])
			}
		}
		for _, m := range script.FindAllStringSubmatch(string(b), -1) {
			if named++; !has(scripts, "", m[1]) {
				t.Errorf("%s: there is no script %s", doc, m[0])
			}
		}
		for _, m := range file.FindAllStringSubmatch(string(b), -1) {
			named++
			if found, err := filepath.Glob(filepath.Join(root, m[1])); err != nil || len(found) == 0 {
				t.Errorf("%s: there is no %s", doc, m[1])
			}
		}
	}
	if named < 100 {
		t.Errorf("the documents name only %d tests and files", named)
	}
}

// has tells whether a package, or any, has a name; * stands for its end.
func has(names map[string][]string, pkg, name string) bool {
	for n, pkgs := range names {
		if n != name && !(strings.HasSuffix(name, "*") && strings.HasPrefix(n, strings.TrimSuffix(name, "*"))) {
			continue
		}
		for _, p := range pkgs {
			if pkg == "" || p == pkg {
				return true
			}
		}
	}
	return false
}

// defined are the tests and benchmarks, and the scripts, with their packages.
func defined(t *testing.T, root string) (tests, scripts map[string][]string) {
	t.Helper()
	tests, scripts = map[string][]string{}, map[string][]string{}
	decl := regexp.MustCompile(`(?m)^func ((?:Test|Benchmark)\w+)\(`)
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		pkg, name := filepath.Base(filepath.Dir(path)), filepath.Base(path)
		switch {
		case strings.HasSuffix(name, ".txtar"):
			name = strings.TrimSuffix(name, ".txtar")
			scripts[name] = append(scripts[name], pkg)
		case strings.HasSuffix(name, "_test.go"):
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			for _, m := range decl.FindAllStringSubmatch(string(b), -1) {
				tests[m[1]] = append(tests[m[1]], pkg)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests, scripts
}
