package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/term"

	"deployx/fallback"
	"deployx/snapshot"
)

// openCopy opens the copy driver with the filter that the tree was added with: what
// is captured and what is restored must never differ.
func (a *app) openCopy(ctx context.Context, t snapshot.Tree) (snapshot.Driver, error) {
	return fallback.Open(ctx, fallback.Options{
		Tree: t.Path, State: filepath.Join(t.Store, "layers"), MaxBytes: t.MaxBytes, Exclude: t.Exclude,
		Warn:     func(text string) { a.say("deployx: warning: %s", text) },
		Progress: a.progress(),
	})
}

// toRun is knownOrNew for a command with flags of the copy driver: --max-bytes becomes
// the tree's, for it is only a bound; what --exclude leaves alone was settled when
// the tree was added.
func (a *app) toRun(ctx context.Context) (snapshot.Tree, error) {
	f := a.session
	if err := fallback.CheckExclude(f.exclude); err != nil {
		return snapshot.Tree{}, usageError{err}
	}
	t, err := a.knownOrNew(ctx)
	switch {
	case err != nil:
		return t, err
	case t.Driver != fallback.Name:
		if f.maxBytes.given || len(f.exclude) > 0 {
			a.say("deployx: --max-bytes and --exclude have no effect: %s is kept in layers, not copied", printable(t.Path))
		}
		return t, nil
	case len(f.exclude) > 0 && !slices.Equal(f.exclude, t.Exclude):
		return t, &snapshot.Error{
			Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf("%q was added with --exclude %q, not %q", t.Path, t.Exclude, f.exclude),
			Hint: "leave --exclude out; or deployx forget --commit, and then deployx run with other patterns",
		}
	case f.maxBytes.given && int64(f.maxBytes.sizeFlag) != t.MaxBytes:
		return a.bound(ctx, t.Path)
	}
	return t, nil
}

// bound records another --max-bytes.
func (a *app) bound(ctx context.Context, path string) (t snapshot.Tree, err error) {
	l, err := snapshot.WaitLock(ctx, filepath.Join(a.stateDir(), "lock"), nil)
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, l.Unlock()) }()
	st := snapshot.NewState(a.stateDir())
	if t, err = st.Tree(path); err != nil {
		return t, err
	}
	t.MaxBytes = int64(a.session.maxBytes.sizeFlag)
	return t, st.Add(t)
}

// progressPause is how often progress is told, and how long work must take to
// be worth it.
const progressPause = 500 * time.Millisecond

// progress tells how far long work has come: one line that is written over
// where stderr is a terminal, an event with --json, nothing elsewhere.
func (a *app) progress() func(fallback.Progress) {
	f, ok := a.err.(*os.File)
	terminal := ok && term.IsTerminal(int(f.Fd())) && !a.quiet
	if !terminal && !a.json {
		return nil
	}
	last := time.Now()
	return func(p fallback.Progress) {
		if time.Since(last) < progressPause {
			return
		}
		last = time.Now()
		if a.json {
			json.NewEncoder(a.out).Encode(map[string]any{ //nolint:errcheck // a reader that went away does not stop the work
				"event": "progress", "phase": p.Phase, "files": p.Files, "bytes": p.Bytes,
				"total_files": p.TotalFiles, "total_bytes": p.TotalBytes,
			})
			return
		}
		of := ""
		if p.TotalFiles > 0 {
			of = fmt.Sprintf(" of %d", p.TotalFiles)
		}
		fmt.Fprintf(a.err, "\r\033[Kdeployx: %s: %d%s files, %s\r", p.Phase, p.Files, of, size(p.Bytes)) //nolint:errcheck // nowhere to tell
	}
}
