package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A method is a way to run a command so that it can be undone.
type method struct {
	name string
	fs   string // "" is ext4
	// begin readies a filled tree.
	begin func(p *place) error
	// run takes a snapshot, in its way, and runs a command that changes a file.
	run func(p *place, i int) error
	// undo takes the newest run back; nil where there is no way.
	undo func(p *place, i int) error
	// one keeps only the newest snapshot: more would not fit.
	one func(p *place, i int) error
	end func(p *place) error
}

// A place is a filesystem with a tree on it.
type place struct {
	image
	o     options
	tree  string
	files int
	extra any // the method's own
}

// A figure is what one method took for one size of tree.
type figure struct {
	Method    string
	Files     int
	Run, Undo time.Duration
	Disk      int64 // for each command
	Commands  int
	Why       string // not measured
}

// patience bounds what one method may take for one size of tree.
const patience = 60 * time.Second

// compare measures a command and its undo in every way, for every size.
func compare(o options) error {
	var all []figure
	for _, n := range o.sizes {
		for _, m := range methods(o) {
			if !strings.HasPrefix(m.name, o.only) {
				continue
			}
			f, err := m.measure(o, n)
			if err != nil {
				return fmt.Errorf("%s with %d files: %w", m.name, n, err)
			}
			all = append(all, f)
		}
	}
	if err := printCompared(all); err != nil || o.out == "" {
		return err
	}
	return errors.Join(
		chart(filepath.Join(o.out, "compare-command.svg"), "A command that changes one file, with its snapshot: milliseconds, logarithmic", all, func(f figure) time.Duration { return f.Run }),
		chart(filepath.Join(o.out, "compare-undo.svg"), "Undoing it: milliseconds, logarithmic", all, func(f figure) time.Duration { return f.Undo }))
}

func printCompared(all []figure) error {
	fmt.Printf("\nA command that changes one file, its undo, and the disk that each command takes beyond its own bytes: medians.\n\n")
	t := newTable("files", "way", "command", "undo", "disk a command", "commands")
	for _, f := range all {
		if f.Why != "" {
			t.row(fmt.Sprint(f.Files), f.Method, f.Why, "", "", "")
			continue
		}
		t.row(fmt.Sprint(f.Files), f.Method, short(f.Run), short(f.Undo), bytes(f.Disk), fmt.Sprint(f.Commands))
	}
	return t.end()
}

func (m method) measure(o options, files int) (f figure, err error) {
	f = figure{Method: m.name, Files: files}
	if m.run == nil {
		f.Why = "not measured"
		return f, nil
	}
	if m.fs == "" {
		m.fs = "ext4"
	}
	var args []string
	if m.fs == "ext4" {
		args = []string{"-N", fmt.Sprint(400_000 + 4*files)}
	}
	img, err := newImage(o, m.fs, 2+files/50_000, args...)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, img.close()) }()
	p := &place{image: img, o: o, files: files, tree: img.path("srv", "tree")}
	if err := m.fill(p); err != nil {
		return f, err
	}
	if m.end != nil {
		defer func() { err = errors.Join(err, m.end(p)) }()
	}
	if m.begin != nil {
		if err := m.begin(p); err != nil {
			return f, err
		}
	}
	return m.rounds(p, f)
}

// fill makes the tree: files of 100 bytes, a thousand to a directory. On btrfs
// it is a subvolume.
func (m method) fill(p *place) error {
	if err := os.MkdirAll(filepath.Dir(p.tree), 0o755); err != nil {
		return err
	}
	mk := func() error { return os.Mkdir(p.tree, 0o755) }
	if m.fs == "btrfs" {
		mk = func() error { return command("", "btrfs", "subvolume", "create", p.tree) }
	}
	if err := mk(); err != nil {
		return err
	}
	content := []byte(strings.Repeat("deployx\n", 12) + "abc\n")
	for i := range p.files {
		dir := filepath.Join(p.tree, fmt.Sprint(i/1000))
		if i%1000 == 0 {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), content, 0o644); err != nil {
			return err
		}
	}
	return syncAll(p.dir)
}

// rounds runs some commands, then undoes some of them.
func (m method) rounds(p *place, f figure) (figure, error) {
	runs, disk, err := m.runs(p)
	if err != nil {
		return f, err
	}
	f.Commands, f.Run, f.Disk = len(runs), median(runs), disk
	if m.undo == nil {
		return f, nil
	}
	least := max(1, len(runs)-p.o.rounds)
	if m.one != nil {
		least = len(runs) - 1
	}
	var undos []time.Duration
	for i, first := len(runs)-1, time.Now(); i >= min(least, len(runs)-1) && time.Since(first) < patience; i-- {
		took, err := timed(func() error { return m.undo(p, i) })
		if err == nil {
			err = undone(p, i)
		}
		if err != nil {
			return f, err
		}
		undos = append(undos, took)
	}
	f.Undo = median(undos)
	return f, nil
}

// runs runs commands, and tells the space that one takes. What the first one
// sets up is left out of that, unless there is no other.
func (m method) runs(p *place) (runs []time.Duration, disk int64, err error) {
	before, err := p.used()
	counted := 0
	for i, first := 0, time.Now(); err == nil && i < 6*p.o.rounds && (i < 1 || time.Since(first) < patience); i++ {
		var took time.Duration
		if took, err = timed(func() error { return m.run(p, i) }); err != nil {
			break
		}
		runs = append(runs, took)
		switch {
		case m.one != nil:
			counted, err = 1, m.one(p, i)
		case i == 0:
			var now int64
			if now, err = p.used(); 6*p.o.rounds > 1 && time.Since(first) < patience {
				before = now
			} else {
				counted++
			}
		default:
			counted++
		}
	}
	if err != nil {
		return nil, 0, err
	}
	after, err := p.used()
	return runs, (after - before) / int64(max(1, counted)), err
}

// change is the command that is run: the same for everybody.
func change(i int) string { return fmt.Sprintf("echo %d >> 0/%d", i, i%100) }

// undone makes sure that a figure is not one of something that did not happen.
func undone(p *place, i int) error {
	b, err := os.ReadFile(filepath.Join(p.tree, "0", fmt.Sprint(i%100)))
	if err == nil && slices.Contains(strings.Split(string(b), "\n"), fmt.Sprint(i)) {
		return fmt.Errorf("command %d was not undone", i)
	}
	return err
}
