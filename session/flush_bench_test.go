package session

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/durable"
	"deployx/internal/testns"
)

// BenchmarkFlush makes a layer of a few files last, by syncfs of the filesystem
// and by fsync of what it holds, alone and beside a database that writes pages
// and flushes them.
func BenchmarkFlush(b *testing.B) {
	for _, busy := range []bool{false, true} {
		for _, files := range []int{1, 20} {
			for _, way := range []string{"syncfs", "fsync"} {
				b.Run(fmt.Sprintf("busy=%v/files=%d/%s", busy, files, way), func(b *testing.B) { flushes(b, busy, files, way) })
			}
		}
	}
}

func flushes(b *testing.B, busy bool, files int, way string) {
	dir := testns.NewImage(b, testns.ImageOptions{Size: 512 << 20}).Dir
	stop, writing := make(chan struct{}), sync.WaitGroup{}
	if busy {
		writing.Go(func() { writePages(b, filepath.Join(dir, "db"), stop) })
	}
	var took []time.Duration
	for i := range b.N {
		layer := filepath.Join(dir, fmt.Sprint("layer", i))
		err := os.Mkdir(layer, 0o755)
		for n := range files {
			err = errors.Join(err, os.WriteFile(filepath.Join(layer, fmt.Sprint(n)), make([]byte, 4096), 0o644))
		}
		start := time.Now()
		if way == "syncfs" {
			err = errors.Join(err, durable.SyncFilesystem(dir))
		} else {
			err = errors.Join(err, syncEach(layer), durable.SyncDir(layer), durable.SyncDir(dir))
		}
		if took = append(took, time.Since(start)); err != nil {
			b.Fatal(err)
		}
	}
	close(stop)
	writing.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

func syncEach(dir string) error {
	names, err := os.ReadDir(dir)
	for _, n := range names {
		f, e := os.Open(filepath.Join(dir, n.Name()))
		if err = errors.Join(err, e); e == nil {
			err = errors.Join(err, f.Sync(), f.Close())
		}
	}
	return err
}

// writePages writes 8 KiB pages all over 64 MiB, and flushes after each 64.
func writePages(b *testing.B, name string, stop chan struct{}) {
	f, err := os.Create(name)
	if err != nil {
		b.Error(err)
		return
	}
	defer f.Close() //nolint:errcheck // a benchmark's
	page := make([]byte, 8192)
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		default:
		}
		_, err := f.WriteAt(page, rand.Int64N(8192)*8192)
		if n%64 == 63 {
			err = errors.Join(err, unix.Fdatasync(int(f.Fd())))
		}
		if err != nil {
			b.Error(err)
			return
		}
	}
}
