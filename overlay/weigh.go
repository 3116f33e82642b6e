package overlay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// weightKept is the weight from which on it is worth a file.
const weightKept = 4096

// weigh counts the entries of each unit.
func (d *Driver) weigh(ctx context.Context, units []unit) ([]int, error) {
	d.merging.mu.Lock()
	known := d.merging.weights
	d.merging.mu.Unlock()
	now, weights := map[string]int{}, make([]int, len(units))
	for i, u := range units {
		n, ok := known[u.dir]
		if !ok {
			var err error
			if n, err = weight(ctx, u); err != nil {
				return nil, fmt.Errorf("weigh layer: %w", err)
			}
		}
		now[u.dir], weights[i] = n, n
	}
	d.merging.mu.Lock()
	defer d.merging.mu.Unlock()
	d.merging.weights = now
	return weights, nil
}

// weight counts the entries of one unit, or finds that it has been done: a run
// was counted when it was made, and a large number of a layer is kept beside it.
// It is derived, and a wrong one would only make a merge take more or less than
// it should.
func weight(ctx context.Context, u unit) (n int, err error) {
	if u.n > 1 {
		if size, err := readSize(u.dir); err == nil {
			return size.entries, nil
		}
	}
	name := filepath.Join(u.dir, "entries")
	if b, err := os.ReadFile(name); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			return n, nil
		}
	}
	for _, sub := range []string{"s", "u"} {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(u.dir, sub), func(_ string, _ fs.DirEntry, err error) error {
			n++
			if errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			return errors.Join(err, ctx.Err())
		}))
	}
	if err == nil && n >= weightKept {
		os.WriteFile(name, fmt.Appendln(nil, n), 0o600) //nolint:errcheck // see above
	}
	return n, err
}
