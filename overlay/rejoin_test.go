package overlay

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/internal/treecmp"
)

// TestRejoin: what came apart is what it is in a plain directory after Rejoin, but for
// names that were changed in different ways; the times of directories do not change.
func TestRejoin(t *testing.T) {
	testns.Need(t)
	known := testns.Kernel(t, 6, 6)
	for _, c := range splitCases {
		if c.want == "" || !known && !c.byAttributes {
			continue
		}
		for _, layered := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/layered=%v", c.name, layered), func(t *testing.T) {
				r, below := newPartedRig(t, true, layered, c.text)
				r.check(t, c.text, r.dirTimes(), func() {
					some, err := r.d.Rejoin(context.Background(), r.v)
					r.must(err)
					if conflict := c.name == "each for itself"; some == conflict {
						t.Errorf("some: %v", some)
					} else if got := r.splits(below, r.v.Open); conflict != (got != "") {
						t.Errorf("told after it: %q", got)
					}
				}, c.name != "each for itself" && !strings.Contains(c.name, "written alike"))
			})
		}
	}
}

// TestRejoinCrash: one who comes after a kill finds no name of ours and the times of
// before, and can finish it.
func TestRejoinCrash(t *testing.T) {
	testns.Need(t)
	const text = "chmod 600 a; chmod 600 d/b2"
	for _, point := range []string{"noted", "linked", "renamed"} {
		t.Run(point, func(t *testing.T) {
			r, below := newPartedRig(t, true, false, text)
			times := r.dirTimes()
			func() {
				defer crash.SetHook(func(p string) {
					if p == "overlay.relink."+point {
						panic("killed")
					}
				})()
				defer func() {
					if recover() == nil {
						t.Error("the point was not passed")
					}
				}()
				r.d.Rejoin(context.Background(), r.v) //nolint:errcheck // it does not return
			}()
			d, err := New(Options{Tree: r.tree, State: filepath.Dir(r.d.layers), Plain: true})
			r.must(err)
			r.d = d
			r.splits(below, r.v.Open)
			if got := r.dirTimes(); got != times {
				t.Errorf("times: %s, were %s", got, times)
			}
			if out, err := exec.Command("find", r.tree, "-name", ".deployx*").CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("left behind: %s %v", out, err)
			}
			if _, err := os.Lstat(r.d.relinkFile(r.v.Open)); !os.IsNotExist(err) {
				t.Errorf("the note: %v", err)
			}
			r.check(t, text, times, func() {
				_, err := r.d.Rejoin(context.Background(), r.v)
				r.must(err)
			}, true)
		})
	}
}

// TestRejoinOpened: a name that somebody has opened for writing, since it was looked for
// such, is left to him.
func TestRejoinOpened(t *testing.T) {
	testns.Need(t)
	for _, name := range []string{"a2", "d/e/a3"} { // as it was, and changed alike
		r, _ := newPartedRig(t, true, false, "chmod 600 a; sleep 0.02; chmod 600 d/e/a3; sleep 0.02; chmod 600 a")
		var opened *os.File
		restore := crash.SetHook(func(p string) {
			if p != "overlay.relink.linked" || opened != nil {
				return
			}
			var err error
			opened, err = os.OpenFile(filepath.Join(r.tree, name), os.O_WRONLY|os.O_APPEND, 0)
			r.must(err)
		})
		_, err := r.d.Rejoin(context.Background(), r.v)
		restore()
		r.must(err)
		_, err = opened.WriteString("late\n")
		r.must(err)
		r.must(opened.Close())
		if b, err := os.ReadFile(filepath.Join(r.tree, name)); err != nil || string(b) != "a\nlate\n" {
			t.Errorf("%s: %q %v", name, b, err)
		}
		if out, err := exec.Command("find", r.tree, "-name", ".deployx*").CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("left behind: %s %v", out, err)
		}
	}
}

func (r *captureRig) dirTimes() string {
	r.Helper()
	out, err := exec.Command("find", r.tree, "-type", "d", "-printf", "%P %T@\n").Output()
	r.must(err)
	return string(out)
}

// check runs do, which is to leave the times, and if it is to be the same compares the
// tree with a plain directory in which text has been run.
func (r *captureRig) check(t *testing.T, text, times string, do func(), same bool) {
	t.Helper()
	do()
	if got := r.dirTimes(); got != times {
		t.Errorf("times: %s, were %s", got, times)
	}
	if !same {
		return
	}
	plain := t.TempDir()
	r.must(os.Chmod(plain, 0o755))
	out, err := exec.Command("bash", "-ec", "cd "+plain+"; "+splitInside+"\n"+text).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := treecmp.Take(plain)
	r.must(err)
	got, err := treecmp.Take(r.tree)
	r.must(err)
	never := func(int64) int64 { return 0 }
	if d := treecmp.Diff(want, got, treecmp.Options{AnyNlink: true, WantTime: never, GotTime: never}); len(d) > 0 {
		t.Errorf("%s: not what a plain directory is:\n%s", text, d)
	}
}
