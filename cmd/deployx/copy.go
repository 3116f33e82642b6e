package main

import (
	"context"
	"path/filepath"

	"deployx/fallback"
	"deployx/snapshot"
)

// openCopy opens the copy driver with the filter and the bound that the tree
// was added with: what is captured and what is restored must never differ.
func (a *app) openCopy(ctx context.Context, t snapshot.Tree) (snapshot.Driver, error) {
	return fallback.Open(ctx, fallback.Options{
		Tree: t.Path, State: filepath.Join(t.Store, "layers"), MaxBytes: t.MaxBytes, Exclude: t.Exclude,
	})
}
