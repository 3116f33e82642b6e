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
	rigs := mergingRigs(b, image(b, 400_000))
	for _, r := range rigs {
		fill(b, r.tree, 1000)
	}
	whole, told := map[string][]time.Duration{}, map[string][]time.Duration{}
	for i := 0; b.Loop(); i++ {
		for _, name := range mergingNames {
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
	for _, name := range mergingNames {
		percentiles(b, name+"-", whole[name])
		percentiles(b, name+"-told-", told[name])
	}
}

// mergingNames are those of the rigs that take turns.
var mergingNames = []string{"merging", "without"}

// mergingRigs are trees in dir of which one's layers are merged as ever, and the
// other's are not.
func mergingRigs(b *testing.B, dir string) map[string]*rig {
	rigs := map[string]*rig{}
	for _, name := range mergingNames {
		rigs[name] = newRigIn(b, fmt.Sprintf("%s/%s", dir, name))
	}
	without := rigs["without"]
	without.opts.OpenDriver = func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
		return overlay.New(overlay.Options{Tree: t.Path, State: t.Store, MergeAbove: 400})
	}
	without.again()
	return rigs
}
