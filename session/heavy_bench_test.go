package session

import (
	"context"
	"fmt"
	"testing"
	"time"

	"deployx/overlay"
	"deployx/snapshot"
)

// BenchmarkMergingHeavy measures sixty commands in a row that make 5,000 files
// each, in new directories and in such as others have filled, with merging and
// without, in turns.
func BenchmarkMergingHeavy(b *testing.B) {
	const commands = 60
	names := []string{"merging", "without"}
	whole, told := map[string][]time.Duration{}, map[string][]time.Duration{}
	most := map[string]float64{}
	for range b.N {
		dir := image(b, 1_500_000)
		rigs := map[string]*rig{}
		for i, name := range names {
			r := newRigIn(b, fmt.Sprintf("%s/%s", dir, name))
			if i == 1 {
				r.opts.OpenDriver = func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
					return overlay.New(overlay.Options{Tree: t.Path, State: t.Store, MergeAbove: 400})
				}
				r.again()
			}
			rigs[name] = r
		}
		for i := range commands {
			for _, name := range names {
				r, start := rigs[name], time.Now()
				_, err := r.Run(context.Background(), Command{
					Text: heavyText(i, 5000),
					Done: func(Result) { told[name] = append(told[name], time.Since(start)) },
				})
				if err != nil {
					b.Fatal(err)
				}
				whole[name] = append(whole[name], time.Since(start))
				most[name] = max(most[name], float64(mountedLayers(b, r.tree)))
			}
		}
	}
	for _, name := range names {
		percentiles(b, name+"-", whole[name])
		percentiles(b, name+"-told-", told[name])
		b.ReportMetric(most[name], name+"-most-layers")
	}
}
