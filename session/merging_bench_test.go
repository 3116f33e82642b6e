package session

import (
	"context"
	"fmt"
	"testing"
	"time"

	"deployx/overlay"
	"deployx/snapshot"
)

// BenchmarkMerging measures commands while layers are merged in the background,
// and without any merging, in turns. Depth is kept alike: after every sixty
// commands both go back to the start.
func BenchmarkMerging(b *testing.B) {
	dir := image(b, 400_000)
	names := []string{"merging", "without"}
	rigs := map[string]*rig{}
	for i, name := range names {
		r := newRigIn(b, fmt.Sprintf("%s/%s", dir, name))
		if i == 1 {
			if err := r.Session.Close(); err != nil {
				b.Fatal(err)
			}
			r.opts.OpenDriver = func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
				return overlay.New(overlay.Options{Tree: t.Path, State: t.Store, MergeAbove: 400})
			}
			r.reopen()
		}
		fill(b, r.tree, 1000)
		rigs[name] = r
	}
	whole, told := map[string][]time.Duration{}, map[string][]time.Duration{}
	for i := 0; b.Loop(); i++ {
		for _, name := range names {
			r, start := rigs[name], time.Now()
			done := func(Result) { told[name] = append(told[name], time.Since(start)) }
			if _, err := r.Run(context.Background(), Command{Text: fmt.Sprintf("for f in $(seq 20); do echo %d > $((f+%d)); done", i, i%50*7), Done: done}); err != nil {
				b.Fatal(err)
			}
			whole[name] = append(whole[name], time.Since(start))
			if i%60 == 59 {
				if _, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	for _, name := range names {
		percentiles(b, name+"-", whole[name])
		percentiles(b, name+"-told-", told[name])
	}
}
