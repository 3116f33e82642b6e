package session

import (
	"context"
	"testing"
	"time"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// BenchmarkMergingHeavy measures commands in a row that make 5,000 files each, in
// new directories and in such as others have filled, with merging and without, in
// turns. After every sixty both go back to the start.
func BenchmarkMergingHeavy(b *testing.B) {
	rigs := mergingRigs(b, image(b, 1_500_000))
	whole, began := map[string][]time.Duration{}, map[string][]time.Duration{}
	most := map[string]int{}
	for i := 0; b.Loop(); i++ {
		for _, name := range mergingNames {
			r, start := rigs[name], time.Now()
			_, err := r.Run(context.Background(), Command{Text: "cd " + r.tree + "; " + heavyText(i%60, 5000), Started: func(snapshot.Snapshot) error {
				began[name] = append(began[name], time.Since(start)) // what it waited for merges is in it
				return nil
			}})
			if err != nil {
				b.Fatal(err)
			}
			whole[name] = append(whole[name], time.Since(start))
			most[name] = max(most[name], testns.MountedLayers(b, r.tree))
			if i%60 == 59 {
				_, err := r.Rollback(context.Background(), Target{All: true}, RollbackOptions{})
				if err == nil {
					_, err = r.CollectTo(context.Background(), Retention{Age: time.Hour, Undone: true}, false)
				}
				if err == nil {
					err = r.EmptyTrash(context.Background())
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	for _, name := range mergingNames {
		percentiles(b, name+"-", whole[name])
		percentiles(b, name+"-began-", began[name])
		b.ReportMetric(float64(most[name]), name+"-most-layers")
	}
}
