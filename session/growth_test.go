package session

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// growth is a command whose size can be chosen, and how much of everything ten
// times the size may take: time of our CPUs, and bytes allocated. What a fold
// links is always as much as there is.
type growth struct {
	name       string
	small      int
	fill, text func(n int) string
	most       float64
}

// linear is what ten times the files may take, constant what may be taken
// whatever the size.
const (
	linear   = 20
	constant = 2
)

func growths() []growth {
	none := func(int) string { return ":" }
	return []growth{
		{"files in directories", 1000, none, func(n int) string {
			return fmt.Sprintf("for d in $(seq %d); do mkdir $d; (cd $d; touch $(seq 100)); done", n/100)
		}, linear},
		{"files in one directory", 1000, none, func(n int) string { return fmt.Sprintf("seq %d | xargs touch", n) }, linear},
		{"files removed", 1000, func(n int) string { return fmt.Sprintf("seq %d | xargs touch", n) }, func(int) string { return "ls | xargs rm" }, linear},
		{"a file more among many", 1000, func(n int) string { return fmt.Sprintf("seq %d | xargs touch", n) }, func(int) string { return "echo x > more" }, constant},
		{"a long path", 400, none, func(n int) string {
			return fmt.Sprintf("for i in $(seq %d); do mkdir %s && cd %[2]s || exit; done; echo x > f; cd $DEPLOYX_TREE", n/100, strings.Repeat("d", 99))
		}, linear},
		{"a sparse file", 5, func(n int) string { return fmt.Sprintf("truncate -s %dG sparse; echo x >> sparse", n) }, func(int) string { return "echo y >> sparse" }, constant},
	}
}

// growthTries are the measurements that the least cost of each step is taken from:
// what else goes on, here and in the kernel, only adds.
const growthTries = 8

// TestGrowth: ten times the size takes about ten times as much, or no more at
// all: nothing is quadratic.
func TestGrowth(t *testing.T) {
	for _, g := range growths() {
		t.Run(g.name, func(t *testing.T) {
			small, large := map[string]cost{}, map[string]cost{}
			for try := 1; ; try++ {
				least(small, g.costs(t, g.small))
				least(large, g.costs(t, 10*g.small))
				wrong := g.unfit(small, large)
				if len(wrong) == 0 {
					return
				}
				if try == growthTries {
					t.Fatalf("more than it may be, at the least of %d tries:\n%s", try, strings.Join(wrong, "\n"))
				}
			}
		})
	}
}

// What is too little to be compared: of time, and of bytes allocated, of which the paths
// themselves take some for each level. The shell takes a buffer of 256 KiB at times.
const (
	few      = 3 * time.Millisecond
	fewBytes = 64 << 10
	fewRun   = 256 << 10
)

// least keeps the least that each step took.
func least(of map[string]cost, costs map[string]cost) {
	for what, c := range costs {
		if l, ok := of[what]; ok {
			c.cpu, c.allocated = min(c.cpu, l.cpu), min(c.allocated, l.allocated)
		}
		of[what] = c
	}
}

// unfit compares ten times the size with the size, step by step, and tells of those
// that take too much.
func (g growth) unfit(small, large map[string]cost) (wrong []string) {
	for what, c := range large {
		s, most, bytes := small[what], g.most, float64(fewBytes)
		switch what {
		case "run":
			bytes = fewRun
		case "collect":
			most = linear
		}
		cpu, alloc := float64(c.cpu)/float64(max(few, s.cpu)), c.allocated/max(bytes, s.allocated)
		if cpu > most || alloc > most {
			wrong = append(wrong, fmt.Sprintf("%s, at most %.0f times: CPU %v and %v, %.1f times; allocated %.0f and %.0f, %.1f times",
				what, most, s.cpu, c.cpu, cpu, s.allocated, c.allocated, alloc))
		}
	}
	return wrong
}

func (g growth) costs(t *testing.T, n int) map[string]cost {
	ctx := context.Background()
	img := testns.NewImage(t, testns.ImageOptions{Size: 2 << 30, Inodes: 60_000})
	r := newRigIn(t, img.Dir)
	defer func() { // before the image goes
		if err := r.Session.Close(); err != nil {
			t.Error(err)
		}
		r.reopen()
	}()
	r.run(g.fill(n))
	costs := map[string]cost{}
	var id snapshot.ID
	do := func(what string, f func() error) {
		t.Helper()
		calm(t)
		costs[what] = measure(r, func() {
			if err := f(); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
		})
	}
	do("run", func() error {
		res, err := r.Run(ctx, Command{Text: g.text(n)})
		id = res.Snapshot.ID
		if err == nil && (res.Snapshot.ExitCode != 0 || res.Snapshot.Changes.Total() == 0) {
			err = fmt.Errorf("exit status %d, %+v: %s", res.Snapshot.ExitCode, res.Snapshot.Changes, res.Tail)
		}
		return err
	})
	do("diff", func() error {
		return r.Compare(ctx, id, func(c Comparison) error {
			return c.Changes(ctx, func(snapshot.Change) error { return nil })
		})
	})
	do("rollback", func() error {
		_, err := r.Rollback(ctx, Target{ID: id}, RollbackOptions{})
		return err
	})
	do("redo", func() error {
		_, err := r.Redo(ctx, 1, RollbackOptions{})
		return err
	})
	do("collect", func() error {
		_, err := r.Collect(ctx, -time.Hour, false)
		return err
	})
	return costs
}

// calm waits until this process does next to nothing: what goes on in it after a
// command, such as the end of the old view, is not the next one's.
func calm(t *testing.T) {
	const look = 20 * time.Millisecond
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		before := cpuTime(t)
		if time.Sleep(look); cpuTime(t)-before < look/20 {
			return
		}
	}
}
