package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/term"

	"deployx/fallback"
	"deployx/snapshot"
)

// openCopy opens the copy driver with the filter and the bound that the tree
// was added with: what is captured and what is restored must never differ.
func (a *app) openCopy(ctx context.Context, t snapshot.Tree) (snapshot.Driver, error) {
	return fallback.Open(ctx, fallback.Options{
		Tree: t.Path, State: filepath.Join(t.Store, "layers"), MaxBytes: t.MaxBytes, Exclude: t.Exclude,
		Warn:     func(text string) { a.say("deployx: warning: %s", text) },
		Progress: a.progress(),
	})
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
