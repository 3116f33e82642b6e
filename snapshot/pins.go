package snapshot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"deployx/internal/durable"
)

// pins is the file of that name: snapshots that must not expire.
type pins struct {
	Version int  `json:"version"`
	IDs     []ID `json:"snapshot_ids"`
}

// Pinned lists the snapshots that must not expire, oldest first. One that is
// gone all the same (committed, say) is not named.
func (r *Record) Pinned() ([]ID, error) {
	var p pins
	name := filepath.Join(r.dir, "pins")
	err := readJSON(name, &p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := checkVersion(name, p.Version); err != nil {
		return nil, err
	}
	var ids []ID
	for _, id := range p.IDs {
		if _, err := r.Snapshot(id); err == nil && !r.expired(string(id)) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Pin makes a snapshot one that must not expire, durably, or with off an
// ordinary one again. Twice is once. Needs the tree's lock.
func (r *Record) Pin(id ID, off bool) error {
	ids, err := r.Pinned()
	if err != nil {
		return err
	}
	at := slices.Index(ids, id)
	switch {
	case off && at >= 0:
		ids = slices.Delete(ids, at, at+1)
	case !off && at < 0:
		ids = append(ids, id)
		slices.Sort(ids)
	default:
		return nil
	}
	b, err := json.Marshal(pins{Version, ids})
	if err != nil {
		return err
	}
	err = durable.Write(filepath.Join(r.dir, "pins"), append(b, '\n'))
	if durable.IsPublished(err) {
		return Unconfirmed(err)
	}
	if err != nil {
		return fmt.Errorf("write pins: %w", err)
	}
	return nil
}
