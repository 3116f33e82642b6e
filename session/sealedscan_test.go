package session

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkSealedMany is a command that changes one file in a pinned tree of which the
// layer that takes writes has as many others, on an ext4 in memory, beside a find that
// looks at each file of that layer, just after.
func BenchmarkSealedMany(b *testing.B) {
	for _, files := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("files=%d", files), func(b *testing.B) {
			r := newRigIn(b, image(b, 400_000))
			r.run("cd $DEPLOYX_TREE; echo > f; mkdir d")
			hold(b, r.tree)
			r.run(fmt.Sprintf("mkdir d/{0..99}; for i in {0..99}; do (cd d/$i; seq %d | xargs -r touch); done", files/100))
			r.settled()
			upper := filepath.Join(r.opts.Tree.Store, "layers", string(r.rec.Head().Open), "u")
			var cpu, find, findCPU time.Duration
			for b.Loop() {
				b.StopTimer()
				before := cpuTime(b)
				b.StartTimer()
				r.run("echo x >> f")
				b.StopTimer()
				cpu += cpuTime(b) - before
				start, child := time.Now(), childTime(b)
				if out, err := exec.Command("find", upper, "-newer", "/proc/self/exe", "-links", "+1000").CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				find, findCPU = find+time.Since(start), findCPU+childTime(b)-child
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu.Microseconds())/1e3/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(findCPU.Microseconds())/1e3/float64(b.N), "find-cpu-ms/op")
			b.ReportMetric(float64(find.Microseconds())/1e3/float64(b.N), "find-ms/op")
		})
	}
}
