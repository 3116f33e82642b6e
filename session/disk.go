package session

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"deployx/snapshot"
)

// disk adds up what the layers take. Where a sealed layer does not change, that
// is remembered in the file usage, a layer a line: looking at 10,000 layers takes
// seconds. The file is derived; a lost one costs that.
func (s *Session) disk(ctx context.Context) (sum snapshot.Usage, err error) {
	ids, err := s.drv.Layers(ctx)
	if err != nil {
		return sum, err
	}
	_, constant := s.drv.(snapshot.Deriver)
	known := map[snapshot.LayerID]snapshot.Usage{}
	if constant {
		known = s.knownUsage()
	}
	fresh, open := 0, s.rec.Head().Open
	var b []byte
	for _, id := range ids {
		u, ok := known[id]
		if !ok {
			if u, err = s.drv.Usage(ctx, id); err != nil {
				return sum, err
			}
			fresh++
		}
		sum.Bytes += u.Bytes
		sum.Inodes += u.Inodes
		if id < open { // ids sort by time: the open one and younger ones can change
			b = fmt.Appendf(b, "%s %d %d\n", id, u.Bytes, u.Inodes)
		}
	}
	if constant && fresh > usageEvery {
		err = s.keepUsage(b)
	}
	return sum, err
}

// usageEvery is how many layers may have to be looked at each time.
const usageEvery = 64

func (s *Session) usageFile() string { return filepath.Join(s.o.Tree.Store, "usage") }

// keepUsage replaces the file. Nobody holds a lock; the last one wins.
func (s *Session) keepUsage(b []byte) error {
	f, err := os.CreateTemp(s.o.Tree.Store, "usage.*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), s.usageFile())
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// knownUsage reads the file; a line that is not whole counts for nothing.
func (s *Session) knownUsage() map[snapshot.LayerID]snapshot.Usage {
	known := map[snapshot.LayerID]snapshot.Usage{}
	b, err := os.ReadFile(s.usageFile())
	if err != nil {
		return known
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 || !strings.HasSuffix(line, "\n") {
			continue
		}
		size, err := strconv.ParseInt(f[1], 10, 64)
		inodes, err2 := strconv.ParseInt(f[2], 10, 64)
		if err == nil && err2 == nil {
			known[snapshot.LayerID(f[0])] = snapshot.Usage{Bytes: size, Inodes: inodes}
		}
	}
	return known
}

// A Size is what the layer of one snapshot takes. Snapshots that share a layer
// have it once, at the newest.
type Size struct {
	ID    snapshot.ID `json:"snapshot_id"`
	Bytes int64       `json:"bytes"`
	Nodes int64       `json:"inodes"`
}

// Size is what the layer of e takes, in bytes, without what it shares with others.
func (s *Session) Size(ctx context.Context, e snapshot.Snapshot) (int64, error) {
	if e.Layer == "" {
		return 0, nil
	}
	u, err := s.drv.Usage(ctx, e.Layer)
	return u.Bytes, err
}

// Sizes lists what the applied snapshots take, newest first.
func (s *Session) Sizes(ctx context.Context) (list []Size, err error) {
	known, last := s.knownUsage(), snapshot.LayerID("")
	for e, err := range s.rec.Chain(s.rec.Head().Snapshot) {
		if err != nil {
			return nil, err
		}
		var u snapshot.Usage
		if e.Layer != "" && e.Layer != last {
			var ok bool
			if u, ok = known[e.Layer]; !ok {
				if u, err = s.drv.Usage(ctx, e.Layer); err != nil {
					return nil, err
				}
			}
			last = e.Layer
		}
		list = append(list, Size{e.ID, u.Bytes, u.Inodes})
	}
	return list, nil
}
