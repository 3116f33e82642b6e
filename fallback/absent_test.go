package fallback_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/crash/crashtest"
	"deployx/snapshot"
)

// noted makes a tree with a layer of which only a note was taken.
func noted(t *testing.T, o fallback.Options) (v snapshot.View, d *fallback.Driver) {
	t.Helper()
	script(t, o.Tree, `echo 1 >old; echo 2 >changed; mkdir d`)
	d, err := fallback.Open(t.Context(), o)
	must(t, err)
	v = show(t, d)
	script(t, o.Tree, `head -c 300K /dev/urandom >d/big; ln d/big d/name; rm old; echo 3 >changed; ln -s x link`)
	some, err := d.Note(t.Context(), v)
	must(t, err)
	if !some {
		t.Fatal("nothing was noted")
	}
	return v, d
}

func place(t *testing.T, dir string) fallback.Options {
	t.Helper()
	o := fallback.Options{Tree: filepath.Join(dir, "tree"), State: filepath.Join(dir, "state")}
	must(t, os.MkdirAll(o.Tree, 0o755))
	return o
}

// TestNote: what was only noted is undone, told, and not brought back once it is gone.
func TestNote(t *testing.T) {
	o := place(t, t.TempDir())
	v, d := noted(t, o)
	full := []snapshot.LayerID{v.Open}
	kinds := map[string]snapshot.ChangeKind{}
	must(t, d.Changes(t.Context(), nil, full, func(c snapshot.Change) error {
		kinds[c.Path] = c.Kind
		return nil
	}))
	if kinds["d/big"] != snapshot.ChangeAdded || kinds["old"] != snapshot.ChangeDeleted || kinds["changed"] != snapshot.ChangeModified {
		t.Errorf("changes of a layer that was noted: %v", kinds)
	}
	_, err := d.Open(t.Context(), full, "d/big")
	wantCode(t, err, snapshot.CodeNotFound, "no room to copy")
	show(t, d)
	base := picture(t, o.Tree)
	if base["d/big"].Mode != 0 || base["old"].Mode == 0 {
		t.Errorf("after the rollback: %v", base.Paths())
	}
	_, err = d.Show(t.Context(), snapshot.View{Layers: full, Open: snapshot.NewLayerID()})
	wantCode(t, err, snapshot.CodeNotFound, "d/big", "no room to copy")
	diff(t, base, picture(t, o.Tree))
	must(t, d.Close())
}

// TestNoteFilled: the next look stores what was noted, in its own layer.
func TestNoteFilled(t *testing.T) {
	o := place(t, t.TempDir())
	v, d := noted(t, o)
	filled(t, d, v, o.Tree)
	must(t, d.Close())
}

func filled(t *testing.T, d *fallback.Driver, v snapshot.View, tree string) {
	t.Helper()
	changed := picture(t, tree)
	v = push(t, d, v)
	if dirty(t, d, v) {
		t.Error("what was stored late counts as a change")
	}
	show(t, d)
	show(t, d, v.Layers...)
	diff(t, changed, picture(t, tree))
}

// TestNoteCrashes kills the look that stores what was noted, at each of its points.
func TestNoteCrashes(t *testing.T) {
	if dir := os.Getenv(envPlace); dir != "" {
		v, d := noted(t, place(t, dir))
		must(t, os.WriteFile(filepath.Join(dir, "open"), []byte(v.Open), 0o600))
		defer crash.SetHook(func(name string) {
			if name == os.Getenv("DEPLOYX_TEST_KILL") {
				crashtest.Die(name)
			}
		})()
		dirty(t, d, v)
		t.Fatal("the child lives")
	}
	for _, point := range []string{"fallback.fill.copied", "fallback.fill.named", "fallback.filled", "fallback.log.written", "fallback.log.synced"} {
		t.Run(point, func(t *testing.T) {
			dir := t.TempDir()
			cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestNoteCrashes$")
			cmd.Env = append(os.Environ(), envPlace+"="+dir, "DEPLOYX_TEST_KILL="+point)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != unix.SIGKILL {
				t.Fatalf("the child was not killed: %v\n%s", err, out)
			}
			id, err := os.ReadFile(filepath.Join(dir, "open"))
			must(t, err)
			o, v := place(t, dir), snapshot.View{Open: snapshot.LayerID(id)}
			for range 2 {
				d, err := fallback.Open(t.Context(), o)
				must(t, err)
				if !dirty(t, d, v) {
					t.Error("the layer is empty after a crash")
				}
				must(t, d.Close())
			}
			d, err := fallback.Open(t.Context(), o)
			must(t, err)
			filled(t, d, v, o.Tree)
			must(t, d.Close())
		})
	}
}
