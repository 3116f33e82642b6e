package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"deployx/internal/durable"
)

// State is the state directory (default /var/lib/deployx, mode 0700):
//
//	trees/NAME.json   one known tree each (Tree); NAME is readable and unique
//	trees/NAME/       its files, unless Tree.Store names another place
//
// and in a tree's files:
//
//	lock              held by whoever changes the tree
//	record/           the history (Record)
//	contexts/HASH     shell contexts, by the hash of their content
//	output/ID         the end of a command's output
//	layers/           the driver's own
type State struct{ dir string }

// Tree is a directory under protection.
type Tree struct {
	Version int       `json:"version"`
	Path    string    `json:"path"`
	PathB64 []byte    `json:"path_base64,omitempty"` // the exact path, if it is not UTF-8
	Driver  string    `json:"driver"`
	Created time.Time `json:"created"`
	// Store is where the tree's files are: on the tree's own filesystem where
	// that is not the state directory's, so that a layer can become part of
	// base by link and rename.
	Store string `json:"store"`
	// MaxBytes and Exclude bound what the copy driver keeps. They are settled
	// when the tree is added.
	MaxBytes int64    `json:"max_bytes,omitempty"`
	Exclude  []string `json:"exclude,omitempty"`
}

// NewState uses dir, which need not exist yet.
func NewState(dir string) State { return State{dir} }

// Dir is the state directory.
func (s State) Dir() string { return s.dir }

// Name is the name of a tree's files in the state directory.
func Name(tree string) string {
	sum := sha256.Sum256([]byte(tree))
	base := strings.Map(func(r rune) rune {
		if strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_", r) {
			return r
		}
		return '_'
	}, filepath.Base(tree))
	return base[:min(len(base), 40)] + "-" + hex.EncodeToString(sum[:6])
}

// Tree finds a known tree by its path; CodeNotFound if it is not known.
func (s State) Tree(path string) (Tree, error) {
	t, err := readTree(filepath.Join(s.dir, "trees", Name(path)+".json"))
	if errors.Is(err, fs.ErrNotExist) {
		return t, &Error{
			Code: CodeNotFound, Msg: fmt.Sprintf("%q is not a known tree", path),
			Hint: "deployx run --tree DIR makes a directory known; deployx status lists those that are",
		}
	}
	return t, err
}

// Trees lists the known trees in the order of their names.
func (s State) Trees() ([]Tree, error) {
	names, err := filepath.Glob(filepath.Join(s.dir, "trees", "*.json"))
	if err != nil {
		return nil, err
	}
	var trees []Tree
	for _, n := range names {
		t, err := readTree(n)
		if err != nil {
			return nil, err
		}
		trees = append(trees, t)
	}
	return trees, nil
}

// Holding finds the known tree that holds path, the innermost one.
func (s State) Holding(path string) (Tree, error) {
	for p := path; p != "/" && p != "."; p = filepath.Dir(p) {
		t, err := s.Tree(p)
		if err == nil || CodeOf(err) != CodeNotFound {
			return t, err
		}
	}
	return Tree{}, &Error{
		Code: CodeNotFound, Msg: fmt.Sprintf("no known tree holds %q", path),
		Hint: "name one with --tree DIR; deployx status lists those that are known",
	}
}

// Add makes a tree known, durably. Its directory of files is made as well.
func (s State) Add(t Tree) error {
	t.Version, t.PathB64 = Version, odd(t.Path)
	for _, d := range []string{filepath.Join(s.dir, "trees"), t.Store} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if err := os.Chmod(s.dir, 0o700); err != nil {
		return err
	}
	b, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	return durable.Write(filepath.Join(s.dir, "trees", Name(t.Path)+".json"), append(b, '\n'))
}

// Each calls visit for every known tree in the order of their names, or with
// the error for one that cannot be read, whose file is named in it.
func (s State) Each(visit func(Tree, error)) error {
	names, err := filepath.Glob(filepath.Join(s.dir, "trees", "*.json"))
	if err != nil {
		return err
	}
	for _, n := range names {
		visit(readTree(n))
	}
	return nil
}

// Forget makes a tree unknown, durably, and tells what it removed: with the last
// tree the state directory goes too, if nothing else is in it. The tree's files
// must be gone already. No error if it is not known.
func (s State) Forget(path string) (removed []string, err error) {
	name := filepath.Join(s.dir, "trees", Name(path)+".json")
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := durable.SyncDir(filepath.Dir(name)); err != nil {
		return nil, err
	}
	removed = []string{name}
	if os.Remove(filepath.Dir(name)) != nil { // other trees
		return removed, nil
	}
	removed = append(removed, filepath.Dir(name))
	if left, err := os.ReadDir(s.dir); err == nil && len(left) == 1 && left[0].Name() == "lock" {
		lock := filepath.Join(s.dir, "lock")
		if err := os.Remove(lock); err != nil {
			return removed, err
		}
		removed = append(removed, lock)
	}
	if os.Remove(s.dir) == nil {
		removed = append(removed, s.dir)
	}
	return removed, nil
}

func readTree(name string) (Tree, error) {
	var t Tree
	if err := readJSON(name, &t); err != nil {
		return t, err
	}
	if t.PathB64 != nil {
		t.Path = string(t.PathB64)
	}
	return t, checkVersion(name, t.Version)
}
