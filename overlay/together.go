package overlay

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
)

// together builds a settled layer apart from base. What of base was moved had to be
// copied there; a name of the same file that was not moved would go on showing base's.
// So where a copied file has such names, it is all built once more, with these.
func (m *merge) together(view *merged, top string) error {
	err := m.build(view, top)
	if err != nil || !m.apart || len(m.copies) == 0 {
		return err
	}
	root, err := view.root()
	if err != nil {
		return err
	}
	m.also = map[string][]string{}
	if _, err := m.others(root, top); err != nil || len(m.also) == 0 {
		return err
	}
	first := besides(top)
	if err := os.Rename(top, first); err != nil {
		return err
	}
	for id, path := range m.copies {
		m.copies[id] = first + strings.TrimPrefix(path, top)
	}
	m.white = ""
	return errors.Join(m.build(view, top), removeForbidden(first))
}

// besides is a name in the directory of path, and not path's.
func besides(path string) string {
	if filepath.Base(path) == "1" {
		return filepath.Join(filepath.Dir(path), "2")
	}
	return filepath.Join(filepath.Dir(path), "1")
}

// others notes the names of base below a that stand for a file that was copied, and
// the directories that lead there.
func (m *merge) others(a *entry, dir string) (some bool, err error) {
	if err := m.ctx.Err(); err != nil {
		return false, err
	}
	names, err := a.dir.names(-1)
	if err != nil {
		return false, err
	}
	for name := range names {
		found, err := m.other(a, name, filepath.Join(dir, name))
		if err != nil {
			return false, err
		}
		if found {
			m.also[dir] = append(m.also[dir], name)
			some = true
		}
	}
	return some, nil
}

func (m *merge) other(a *entry, name, path string) (bool, error) {
	e, err := a.dir.lookup(name, false)
	if err != nil || e == nil {
		return false, err
	}
	defer e.close()
	if e.dir != nil {
		return m.others(e, path)
	}
	first, copied := m.copies[inode{e.st.Dev, e.st.Ino}]
	if !copied || e.layer < m.split || first == path {
		return false, nil
	}
	_, err = os.Lstat(path) // it was copied for this name too
	return errors.Is(err, os.ErrNotExist), nil
}
