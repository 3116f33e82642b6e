package fallback_test

import (
	"os"
	"path/filepath"
	"testing"

	"deployx/fallback"
	"deployx/snapshot"
)

func openExcluding(t *testing.T, dir string, patterns ...string) *fallback.Driver {
	t.Helper()
	d, err := fallback.Open(t.Context(), fallback.Options{
		Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state"), Exclude: patterns,
	})
	must(t, err)
	return d
}

// TestExclude: what is excluded is neither captured nor restored, nor deleted
// with the directory that a rollback would delete.
func TestExclude(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	script(t, dir, `mkdir -p tree/{cache,d,keep/logs}; cd tree; echo 1 >cache/1; echo l >d/x.log; echo k >keep/logs/k; echo f >d/f`)
	d := openExcluding(t, dir, "*.log", "/cache", "keep/**/k", "tmp/")
	v := show(t, d)
	script(t, tree, `echo 2 >cache/2; echo more >>d/x.log; echo more >>keep/logs/k; mkdir tmp; echo >tmp/t`)
	if dirty(t, d, v) {
		t.Error("dirty from changes to what is excluded")
	}
	script(t, tree, `echo changed >d/f; mkdir -p new/deep/er; echo l >new/deep/er/new.log; echo n >new/n; echo n >new/deep/n; rm -r d/f; echo file >tmp2`)
	push(t, d, v)
	v = show(t, d)
	for path, want := range map[string]string{
		"cache/2": "2\n", "d/x.log": "l\nmore\n", "keep/logs/k": "k\nmore\n", "tmp/t": "\n", "d/f": "f\n", "new/deep/er/new.log": "l\n",
	} {
		if b, err := os.ReadFile(filepath.Join(tree, path)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", path, b, err, want)
		}
	}
	for _, path := range []string{"new/n", "new/deep/n", "tmp2"} {
		if _, err := os.Lstat(filepath.Join(tree, path)); err == nil {
			t.Errorf("%s was not rolled back", path)
		}
	}
	if dirty(t, d, v) {
		t.Error("dirty from directories that stand only for what is excluded in them")
	}
	must(t, d.Close())
}

// TestExcludeBelongsToStack: the filter of capture and of restore is one.
func TestExcludeBelongsToStack(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, `mkdir tree; echo a >tree/a.log; echo b >tree/b`)
	d := openExcluding(t, dir)
	v := show(t, d)
	script(t, dir, `echo changed >tree/b`)
	push(t, d, v)
	must(t, d.Close())
	_, err := fallback.Open(t.Context(), fallback.Options{
		Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state"), Exclude: []string{"*.log"},
	})
	wantCode(t, err, snapshot.CodeUnsupported, "--exclude", "*.log")
	d = openExcluding(t, dir)
	must(t, d.Hide(t.Context()))
	must(t, d.Close())
	d = openExcluding(t, dir, "*.log")
	v = show(t, d)
	script(t, dir, `echo more >>tree/a.log`)
	if dirty(t, d, v) {
		t.Error("dirty from what the new patterns exclude")
	}
	must(t, d.Close())
	_, err = fallback.Open(t.Context(), fallback.Options{
		Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state"), Exclude: []string{"[a"},
	})
	wantCode(t, err, snapshot.CodeBadRequest, "[a")
}

// TestPlaces: a state in the tree, or a tree in the state, is refused, however
// it is spelled.
func TestPlaces(t *testing.T) {
	dir := t.TempDir()
	script(t, dir, `mkdir -p tree/sub state/tree; ln -s tree link; echo f >file`)
	for _, p := range []struct{ tree, state string }{
		{"tree", "tree/state"},
		{"tree", "tree/sub/deep/state"},
		{"tree", "tree"},
		{"tree", "link/state"},
		{"state/tree", "state"},
		{"link", "state"},
		{"file", "state"},
	} {
		_, err := fallback.Open(t.Context(), fallback.Options{Tree: filepath.Join(dir, p.tree), State: filepath.Join(dir, p.state)})
		wantCode(t, err, snapshot.CodeUnsupported)
	}
	if _, err := fallback.Open(t.Context(), fallback.Options{Tree: filepath.Join(dir, "nothing"), State: filepath.Join(dir, "state")}); err == nil {
		t.Error("a tree that does not exist was opened")
	}
	if left, err := os.ReadDir(filepath.Join(dir, "tree")); err != nil || len(left) != 1 {
		t.Errorf("something was made in the tree: %v, %v", left, err)
	}
}
