package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deployx/internal/treecmp"
	"deployx/snapshot"
)

// outside runs a script in the tree as a service would, without a snapshot.
func (r *rig) outside(text string) {
	r.Helper()
	if err := r.tryOutside(r.tree, text); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) tryOutside(dir, text string) error {
	cmd := exec.Command("bash", "-c", text)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", text, err, out)
	}
	return nil
}

func (r *rig) in(text string) Result {
	r.Helper()
	res, out := r.run("cd " + r.tree + " && " + text)
	if res.Snapshot.ExitCode != 0 {
		r.Fatalf("%s: exit status %d\n%s", text, res.Snapshot.ExitCode, out)
	}
	return res
}

// anyTimes compares trees that were made at different moments.
var anyTimes = treecmp.Options{
	AnyGroups: true, AnyNlink: true,
	WantTime: func(int64) int64 { return 0 }, GotTime: func(int64) int64 { return 0 },
}

// wantTree demands that the tree is what a script makes of an empty directory.
func (r *rig) wantTree(script string) {
	r.Helper()
	dir := r.TB.(*testing.T).TempDir()
	if err := errors.Join(os.Chmod(dir, 0o755), r.tryOutside(dir, script)); err != nil {
		r.Fatal(err)
	}
	if d := treecmp.Diff(picture(r.TB.(*testing.T), dir), picture(r.TB.(*testing.T), r.tree), anyTimes); len(d) > 0 {
		r.Fatalf("the tree is not what %q makes:\n%s", script, d)
	}
}

func TestKeep(t *testing.T) {
	const base = "mkdir -p app up log; echo 1 > app/main; echo a > up/a; echo l > log/l; ln -s a up/l; mkdir -p old/deep; echo d > old/deep/d"
	for _, c := range []struct {
		name                  string
		deploy, others, again string // a command, what others do then, what they do after its rollback
		want                  string // on top of base, after the rollback; after the redo with deploy before it
	}{
		{"an upload", "echo 2 > app/main; rm log/l", "echo new > up/new; echo aa >> up/a", "echo n >> up/new", "echo new > up/new; echo aa >> up/a"},
		{"removals", "echo 2 > app/main", "rm up/a; rm -r log", "echo b > up/b", "rm up/a; rm -r log"},
		{
			"a directory moved", "echo 2 > app/main", "mv old new; echo e > new/e; rm new/deep/d; mkdir old; echo o > old/o", "mv new newer; mv newer/e newer/f",
			"mv old new; echo e > new/e; rm new/deep/d; mkdir old; echo o > old/o",
		},
		{"a directory that a command changed, too", "chmod 700 up; touch up/c", "echo u > up/u", "chmod 711 log; rm up/u", "echo u > up/u"},
		{"attributes", "echo 2 > app/main", "chmod 600 up/a; chmod 700 .; setfattr -n user.x -v y log", "chown 7:8 up/a", "chmod 600 up/a; chmod 700 .; setfattr -n user.x -v y log"},
		{
			"types", "echo 2 > app/main", "rm -r log; echo f > log; rm up/l; mkdir up/l; echo x > up/l/x; mkfifo up/p", "rm log; mkdir log; rm -r up/l",
			"rm -r log; echo f > log; rm up/l; mkdir up/l; echo x > up/l/x; mkfifo up/p",
		},
		{"a command in a directory of others", "echo 2 > app/main", "mkdir cache; echo c > cache/c", "echo d > cache/d; rm cache/c", "mkdir cache; echo c > cache/c"},
		{"hard links", "echo 2 > app/main", "echo h > up/h; ln up/h up/h2", "rm up/h2", "echo h > up/h; ln up/h up/h2"},
		{"nothing in the end", "echo 2 > app/main", "echo t > up/t; rm up/t", "echo t > up/t; rm up/t", "true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, r *rig) {
				r.outside(base)
				before := r.in(c.deploy)
				r.outside(c.others)
				second := r.in("echo more > app/more")
				r.outside("echo last > up/last")
				u := r.rollback(before.Snapshot.ID)
				if len(u.Dropped) != 2 || u.Dropped[0].ID != second.Snapshot.ID || !u.Verified {
					t.Errorf("dropped %+v", u.Dropped)
				}
				undone := base + ";" + c.want + "; echo last > up/last"
				r.wantTree(undone)
				r.outside(c.again)
				done := base + ";" + c.deploy + ";" + c.others + "; echo more > app/more; echo last > up/last"
				if _, err := r.Redo(context.Background(), 1, RollbackOptions{}); err != nil {
					t.Fatal(err)
				}
				r.wantTree(done + ";" + c.again)
				r.in("echo three > app/three")
				r.rollback(before.Snapshot.ID)
				r.wantTree(undone + ";" + c.again)
			})
		})
	}
}

// TestKeepCollides: what cannot be kept is refused, with the paths, and nothing
// has changed.
func TestKeepCollides(t *testing.T) {
	for _, c := range []struct{ name, deploy, others, path string }{
		{"the same file", "echo 2 > f", "echo 3 >> f", "f"},
		{"in a directory of the command", "mkdir new", "echo x > new/x", "new/x"},
		{"in a directory that was moved", "mv d e", "echo x > e/x", "e/x"},
		{"a directory removed", "echo 2 > d/x", "rm -r d", "d"},
		{"a directory moved", "echo 2 > d/x", "mv d e", "d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			onBoth(t, func(t *testing.T, r *rig) {
				r.outside("echo 1 > f; mkdir d; echo 1 > d/f")
				id := r.in(c.deploy).Snapshot.ID
				r.outside(c.others)
				was := picture(t, r.tree)
				for _, dry := range []bool{true, false} {
					_, err := r.Rollback(context.Background(), Target{ID: id}, RollbackOptions{DryRun: dry})
					var e *snapshot.Error
					if !errors.As(err, &e) || e.Code != snapshot.CodeDriftConflict || !slices.Contains(e.Paths, c.path) {
						t.Fatalf("want a conflict at %q, got %v", c.path, err)
					}
				}
				if d := treecmp.Diff(was, picture(t, r.tree), treecmp.Options{}); len(d) > 0 {
					t.Errorf("a refused rollback changed the tree:\n%s", d)
				}
				u, err := r.Rollback(context.Background(), Target{ID: id}, RollbackOptions{Drift: DriftDrop})
				if err != nil || len(u.Dropped) != 2 {
					t.Fatal(u, err)
				}
				r.wantTree("echo 1 > f; mkdir d; echo 1 > d/f")
			})
		})
	}
}

// TestKeepRandom plays commands and outside writers at random, rolls back and
// brings back, and holds the tree against plain directories in which only what
// is applied was done. What others changed is never lost: each rollback keeps it
// or is refused.
func TestKeepRandom(t *testing.T) {
	games := 2
	if os.Getenv("DEPLOYX_SOAK") != "" {
		games = 200
	}
	kept := 0
	for seed := range games {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			onBoth(t, func(t *testing.T, r *rig) {
				g := game{rig: r, t: t, rng: rand.New(rand.NewPCG(uint64(seed), 1))}
				g.play(40)
				kept += g.kept
			})
		})
	}
	if kept == 0 {
		t.Error("nothing was ever kept: games that show nothing")
	}
}

// A game knows what was done, by whom, and what of it is applied.
type game struct {
	*rig
	t       *testing.T
	rng     *rand.Rand
	done    []deed   // applied, in order
	undone  [][]deed // what each rollback took out, to come back by redo
	kept    int      // rollbacks and redos that kept something
	refused int
}

type deed struct {
	text string
	id   snapshot.ID // of a command; "" for others
	at   int         // its place among all deeds
}

func (g *game) play(turns int) {
	g.outside("mkdir -p a/x b c; for d in a a/x b c .; do echo 1 > $d/f; echo 2 > $d/g; done")
	g.done = []deed{{text: "mkdir -p a/x b c; for d in a a/x b c .; do echo 1 > $d/f; echo 2 > $d/g; done"}}
	for turn := range turns {
		switch n := g.rng.IntN(10); {
		case n < 4:
			g.command(turn + 1)
		case n < 7:
			g.others(turn + 1)
		case n < 9:
			g.back()
			g.compare()
		default:
			g.again()
			g.compare()
		}
	}
	g.t.Logf("kept %d times, refused %d", g.kept, g.refused)
}

func (g *game) command(at int) {
	text := g.op()
	res, _ := g.run("cd " + g.tree + " && " + text)
	g.undone = nil
	if res.Snapshot.ExitCode != 0 {
		text = "true"
	}
	g.done = append(g.done, deed{text, res.Snapshot.ID, at})
}

func (g *game) others(at int) {
	if text := g.op(); g.tryOutside(g.tree, text) == nil {
		g.done = append(g.done, deed{text: text, at: at})
	}
}

// op is one change that is done whole or not at all.
func (g *game) op() string {
	dirs := []string{".", "a", "a/x", "b", "c", "d"}
	names := []string{"f", "g", "h", "i"}
	dir := func() string { return dirs[g.rng.IntN(len(dirs))] }
	path := func() string { return dir() + "/" + names[g.rng.IntN(len(names))] }
	p, q := path(), path()
	ops := []string{
		"echo %[5]d >> %[1]s", "echo %[5]d >> %[1]s", "echo %[5]d > %[1]s", "rm %[1]s", "chmod %[6]o %[1]s", "mv -T %[1]s %[2]s",
		"mkdir %[1]s", "mkdir %[3]s", "chmod 7%[6]o %[3]s", "rm -r ./%[3]s", "mv -T ./%[3]s ./%[4]s", "ln -s %[5]d %[1]s", "setfattr -n user.k -v %[5]d %[1]s",
		"mv -T ./%[3]s %[1]s", "test -d %[1]s && echo 1 > %[1]s/f",
	}
	format := ops[g.rng.IntN(len(ops))]
	return strings.Split(fmt.Sprintf(format+"\x00", p, q, dir(), dir(), g.rng.IntN(90)+10, 0o44+g.rng.IntN(3)), "\x00")[0]
}

// back rolls back to a random command.
func (g *game) back() {
	var at []int
	for i, d := range g.done {
		if d.id != "" {
			at = append(at, i)
		}
	}
	if len(at) == 0 {
		return
	}
	from := at[max(0, len(at)-1-g.rng.IntN(4))]
	_, err := g.Rollback(context.Background(), Target{ID: g.done[from].id}, RollbackOptions{})
	var stay, go_ []deed
	for _, d := range g.done[from:] {
		if d.id == "" {
			stay = append(stay, d)
		} else {
			go_ = append(go_, d)
		}
	}
	if g.refusedOr(err) {
		if len(stay) == 0 {
			g.t.Fatal("refused, though nobody else had written:", err)
		}
		return
	}
	if len(stay) > 0 {
		g.kept++
	}
	g.undone = append(g.undone, go_)
	g.done = append(g.done[:from:from], stay...)
}

func (g *game) refusedOr(err error) bool {
	if err != nil && snapshot.CodeOf(err) != snapshot.CodeDriftConflict {
		g.t.Fatal(err)
	}
	if err != nil {
		g.refused++
	}
	return err != nil
}

// again takes a rollback back, or several.
func (g *game) again() {
	if len(g.undone) == 0 {
		return
	}
	n := 1 + g.rng.IntN(len(g.undone))
	_, err := g.Redo(context.Background(), n, RollbackOptions{})
	if g.refusedOr(err) {
		return
	}
	for _, list := range g.undone[len(g.undone)-n:] {
		g.done = append(g.done, list...)
	}
	slices.SortStableFunc(g.done, func(a, b deed) int { return a.at - b.at })
	g.undone = g.undone[:len(g.undone)-n]
}

// compare plays what is applied in a plain directory.
func (g *game) compare() {
	g.t.Helper()
	dir := filepath.Join(g.t.TempDir(), "plain")
	var script strings.Builder
	script.WriteString("set -e\n")
	for _, d := range g.done {
		script.WriteString(d.text + "\n")
	}
	if err := errors.Join(os.Mkdir(dir, 0o755), g.tryOutside(dir, script.String())); err != nil {
		g.t.Fatal(err)
	}
	if d := treecmp.Diff(picture(g.t, dir), picture(g.t, g.tree), anyTimes); len(d) > 0 {
		g.t.Fatalf("the tree is not what these make:\n%s\n%s", script.String(), d)
	}
}
