package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"deployx/session"
	"deployx/snapshot"
)

// A big is a case that is run in some sizes, each ten times the last.
type big struct {
	name  string
	unit  string
	sizes []int
	image int // GiB
	files int // inodes of the image beyond those of a small one
	// fill makes what is there before the first command.
	fill func(tree string, n int) error
	// text is the command.
	text func(n int) string
}

func bigs() []big {
	return []big{
		{
			name: "one command makes files, 1,000 to a directory", unit: "files", sizes: []int{10_000, 100_000, 1_000_000}, image: 8, files: 2_200_000,
			text: func(n int) string {
				return fmt.Sprintf("for d in $(seq %d); do mkdir $d; (cd $d; echo x | tee $(seq 1000) >/dev/null); done", n/1000)
			},
		},
		{
			name: "one command makes files in one directory", unit: "files", sizes: []int{10_000, 100_000}, image: 4, files: 400_000,
			text: func(n int) string { return fmt.Sprintf("seq %d | xargs touch", n) },
		},
		{
			name: "one file more in a directory of many", unit: "files", sizes: []int{10_000, 100_000}, image: 4, files: 400_000,
			fill: func(tree string, n int) error { return shell(tree, fmt.Sprintf("seq %d | xargs touch", n)) },
			text: func(int) string { return "echo x > more" },
		},
		{
			name: "chmod -R of a tree", unit: "files", sizes: []int{10_000, 100_000}, image: 4, files: 600_000,
			fill: func(tree string, n int) error {
				return shell(tree, fmt.Sprintf("for d in $(seq %d); do mkdir $d; (cd $d; touch $(seq 1000)); done", n/1000))
			},
			text: func(int) string { return "chmod -R o+w ." },
		},
		{
			name: "a file in a path of this length", unit: "bytes", sizes: []int{400, 4000}, image: 2,
			text: func(n int) string {
				return fmt.Sprintf("for i in $(seq %d); do mkdir %s && cd %[2]s || exit; done; echo x > f; cd $DEPLOYX_TREE", n/100, strings.Repeat("d", 99))
			},
		},
		{
			name: "a line more in a sparse file", unit: "GB", sizes: []int{5, 50}, image: 2,
			fill: func(tree string, n int) error {
				return shell(tree, fmt.Sprintf("truncate -s %dG sparse; echo x >> sparse", n))
			},
			text: func(int) string { return "echo more >> sparse" },
		},
	}
}

// huge runs every case and tells how time grows with size.
func huge(o options) error {
	fmt.Printf("\nVery large things. command: until it is reported; diff: all changes listed; undo: until the tree shows it; memory: the most that this process held.\n\n")
	t := newTable("what", "size", "plain bash", "command", "diff", "undo", "memory", "command, times the smaller size")
	for _, b := range bigs() {
		if !strings.HasPrefix(b.name, o.only) {
			continue
		}
		var last time.Duration
		for _, n := range b.sizes {
			if n > o.most {
				continue
			}
			f, err := b.measure(o, n)
			if err != nil {
				return errors.Join(fmt.Errorf("%s, %d: %w", b.name, n, err), t.end())
			}
			growth := ""
			if last > 0 {
				growth = fmt.Sprintf("%.1f", float64(f.command)/float64(last))
			}
			last = f.command
			t.row(b.name, fmt.Sprintf("%d %s", n, b.unit), short(f.plain), short(f.command), short(f.diff), short(f.undo), bytes(f.memory), growth)
		}
	}
	if err := t.end(); err != nil {
		return err
	}
	return manyTrees(o)
}

type bigFigure struct {
	plain, command, diff, undo time.Duration
	memory                     int64
}

func (b big) measure(o options, n int) (f bigFigure, err error) {
	img, err := newImage(o, "ext4", b.image, "-N", fmt.Sprint(100_000+b.files))
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	plain, tree := img.path("plain"), img.path("srv", "tree")
	for _, dir := range []string{plain, tree} {
		err := os.MkdirAll(dir, 0o755)
		if err == nil && b.fill != nil {
			err = b.fill(dir, n)
		}
		if err != nil {
			return f, err
		}
	}
	line := "export DEPLOYX_TREE=$PWD; " + b.text(n)
	if f.plain, err = timed(func() error { return shell(plain, line) }); err != nil {
		return f, err
	}
	if err := os.RemoveAll(plain); err != nil {
		return f, err
	}
	s, err := newSession(img, tree)
	if err != nil {
		return f, err
	}
	return f, errors.Join(b.inSession(s, n, &f), s.Close())
}

func (b big) inSession(s *session.Session, n int, f *bigFigure) error {
	ctx := context.Background()
	if _, err := s.Run(ctx, session.Command{Text: ":"}); err != nil {
		return err
	}
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // forgets the peak
		return err
	}
	var r session.Result
	start := time.Now()
	r, err := s.Run(ctx, session.Command{Text: b.text(n), Done: func(session.Result) { f.command = time.Since(start) }})
	if err != nil {
		return err
	}
	if r.Snapshot.ExitCode != 0 || r.Snapshot.Changes.Total() == 0 {
		return fmt.Errorf("exit status %d, %+v: %s", r.Snapshot.ExitCode, r.Snapshot.Changes, r.Tail)
	}
	f.diff, err = timed(func() error {
		return s.Compare(ctx, r.Snapshot.ID, func(c session.Comparison) error {
			return c.Changes(ctx, func(snapshot.Change) error { return nil })
		})
	})
	if err != nil {
		return err
	}
	u, err := s.Rollback(ctx, session.Target{All: true}, session.RollbackOptions{})
	f.undo = u.Duration
	if err == nil {
		f.memory, err = peak()
	}
	return errors.Join(err, s.EmptyTrash(ctx))
}

// peak is VmHWM of proc_pid_status(5).
func peak() (int64, error) {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib int64
	_, err = fmt.Sscan(rest, &kib)
	return kib << 10, err
}

// manyTrees measures a command in one of many trees that are all mounted, and
// what knowing them takes.
func manyTrees(o options) (err error) {
	fmt.Printf("\nMany trees, all of them mounted.\n\n")
	t := newTable("trees", "list them", "open all, each", "memory, each", "a command, deployx run")
	for _, n := range []int{200, 2000} {
		if n > o.most {
			continue
		}
		if err := treesRow(o, t, n); err != nil {
			return errors.Join(err, t.end())
		}
	}
	return t.end()
}

func treesRow(o options, t table, n int) (err error) {
	img, err := newImage(o, "ext4", 4, "-N", "600000")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	ctx := context.Background()
	tree := func(i int) string { return img.path("srv", fmt.Sprint(i), "tree") }
	for i := range n {
		if err := os.MkdirAll(tree(i), 0o755); err != nil {
			return err
		}
		s, err := newSession(img, tree(i))
		if err == nil {
			_, err = s.Run(ctx, session.Command{Text: "echo x > f"})
		}
		if err = errors.Join(err, s.Close()); err != nil {
			return err
		}
	}
	var list []snapshot.Tree
	listed, err := timed(func() (err error) {
		list, err = snapshot.NewState(img.path("state")).Trees()
		return err
	})
	if err != nil || len(list) != n {
		return fmt.Errorf("%d trees are listed: %w", len(list), err)
	}
	before, open := memory(), []*session.Session{}
	opened, err := timed(func() error {
		for i := range n {
			s, err := newSession(img, tree(i))
			if err == nil {
				_, err = s.Dir()
			}
			if err != nil {
				return err
			}
			open = append(open, s)
		}
		return nil
	})
	if err != nil {
		return err
	}
	each := (memory() - before) / int64(n)
	p := &place{image: img, o: o, tree: tree(n / 2)}
	var took []time.Duration
	for range o.rounds {
		d, err := timed(func() error { return p.deployx("run", "echo x > g") })
		if err != nil {
			return err
		}
		took = append(took, d)
	}
	t.row(fmt.Sprint(n), short(listed), short(opened/time.Duration(n)), bytes(each), short(median(took)))
	for i, s := range open {
		_, err := s.Rollback(ctx, session.Target{All: true}, session.RollbackOptions{})
		if err = errors.Join(err, s.Close()); err != nil {
			return fmt.Errorf("%s: %w", filepath.Base(tree(i)), err)
		}
	}
	return nil
}
