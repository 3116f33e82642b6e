package fallback

import (
	"fmt"
	"path"
	"strings"

	"deployx/snapshot"
)

// filter says which paths the driver leaves alone: it neither captures nor
// restores them, nor anything below them. The zero value leaves nothing out.
//
// A pattern is that of path.Match. Without a slash it is matched with the last
// component at any depth; with one, with the whole path below the tree, where
// ** stands for any number of directories; with one at the end, with
// directories only.
type filter struct{ rules []rule }

type rule struct {
	parts   []string
	anyDir  bool // match the last component alone
	dirOnly bool
}

// CheckExclude tells which of some patterns is none.
func CheckExclude(patterns []string) error {
	_, err := newFilter(patterns)
	return err
}

func newFilter(patterns []string) (filter, error) {
	var f filter
	for _, p := range patterns {
		r := rule{dirOnly: strings.HasSuffix(p, "/")}
		p = strings.TrimSuffix(p, "/")
		r.anyDir = !strings.Contains(p, "/")
		r.parts = strings.Split(strings.TrimPrefix(p, "/"), "/")
		for _, part := range r.parts {
			if _, err := path.Match(part, ""); err != nil || part == "" {
				return f, &snapshot.Error{
					Code: snapshot.CodeBadRequest,
					Msg:  fmt.Sprintf("%q is no pattern for --exclude", p),
					Hint: "* ? and [a-z] stand for letters, ** for directories; a backslash quotes",
					Err:  err,
				}
			}
		}
		f.rules = append(f.rules, r)
	}
	return f, nil
}

// excludes says whether path itself matches; the walk stops there, so what is
// below an excluded directory is never asked.
func (f *filter) excludes(p string, dir bool) bool {
	if len(f.rules) == 0 || p == "." {
		return false
	}
	parts := strings.Split(p, "/")
	for _, r := range f.rules {
		if r.dirOnly && !dir {
			continue
		}
		if r.anyDir && matchParts(r.parts, parts[len(parts)-1:]) || !r.anyDir && matchParts(r.parts, parts) {
			return true
		}
	}
	return false
}

func matchParts(pattern, parts []string) bool {
	if len(pattern) == 0 {
		return len(parts) == 0
	}
	if pattern[0] == "**" {
		return matchParts(pattern[1:], parts) || len(parts) > 0 && matchParts(pattern, parts[1:])
	}
	if len(parts) == 0 {
		return false
	}
	ok, err := path.Match(pattern[0], parts[0])
	return err == nil && ok && matchParts(pattern[1:], parts[1:])
}
