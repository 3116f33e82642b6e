package overlay

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"deployx/internal/testns"
	"deployx/snapshot"
)

func TestMain(m *testing.M) {
	playRole()
	testns.Main(m)
}

func sh(t testing.TB, dir, cmd string) {
	t.Helper()
	c := exec.Command("bash", "-ec", cmd)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func TestSmoke(t *testing.T) {
	for _, o := range []Options{{}, {Plain: true}, {Old: true}, {Old: true, Plain: true}} {
		if o.Old && !testns.Kernel(t, 6, 5) {
			continue // that was the old way
		}
		smoke(t, o)
	}
}

func smoke(t *testing.T, o Options) {
	ctx := context.Background()
	dir := t.TempDir()
	tree := filepath.Join(dir, "a", "tr ee")
	sh(t, dir, `mkdir -p a/"tr ee"/d/e; cd a/"tr ee"; echo base > f; echo x > d/e/x; echo y > d/y; ln -s f l`)
	o.Tree, o.State = tree, filepath.Join(dir, "state")
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(d.Layout())
	v := snapshot.View{Open: snapshot.NewLayerID()}
	show := func() {
		t.Helper()
		start := time.Now()
		tr, err := d.Show(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(tr, time.Since(start))
	}
	show()
	for _, cmd := range []string{"echo a >> f", "mv d g; echo z > g/z; rm g/y", "rm -rf g; mkdir g; chmod 700 .", "touch -d @1 f; echo new > n; mv n m"} {
		if dirty, err := d.Dirty(ctx, v); err != nil || dirty {
			t.Fatal(dirty, err)
		}
		sh(t, tree, cmd)
		if dirty, err := d.Dirty(ctx, v); err != nil || !dirty {
			t.Fatal(dirty, err)
		}
		t.Log(cmd)
		err := d.Changes(ctx, v.Layers, []snapshot.LayerID{v.Open}, func(c snapshot.Change) error {
			b, err := json.Marshal(c)
			t.Logf("%s", b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		v = snapshot.View{Layers: append(v.Layers, v.Open), Open: snapshot.NewLayerID()}
		show()
	}
	v = snapshot.View{Layers: v.Layers[:1], Open: snapshot.NewLayerID()}
	show()
	sh(t, tree, `test "$(cat f)" = $'base\na'; test -e d/e/x`)
	v = snapshot.View{Open: snapshot.NewLayerID()}
	show()
	if err := d.Hide(ctx); err != nil {
		t.Fatal(err)
	}
	sh(t, tree, `test "$(cat f)" = base; test -e d/e/x`)
	if m, _ := os.ReadFile("/proc/self/mountinfo"); len(m) == 0 {
		t.Fatal()
	}
}
