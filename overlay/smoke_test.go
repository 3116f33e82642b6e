package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

// TestProbeLinks: doctor tells where the kernel keeps no hard links together: on a
// filesystem without file handles, and in the plain layout.
func TestProbeLinks(t *testing.T) {
	testns.Need(t)
	dir := t.TempDir()
	for _, c := range []struct {
		tree string
		kept bool
		make func(tree string) error
	}{
		{"srv/app", true, func(string) error { return nil }},
		{"ram/app", false, func(tree string) error {
			if err := unix.Mount("ramfs", filepath.Dir(tree), "ramfs", 0, ""); err != nil {
				return err
			}
			t.Cleanup(func() { unix.Unmount(filepath.Dir(tree), unix.UMOUNT_NOFOLLOW) }) //nolint:errcheck // the namespace goes
			return os.Mkdir(tree, 0o755)
		}},
		{"mount/app", false, func(tree string) error {
			t.Cleanup(func() { unix.Unmount(tree, unix.UMOUNT_NOFOLLOW) }) //nolint:errcheck // the namespace goes
			return unix.Mount(tree, tree, "", unix.MS_BIND, "")
		}},
	} {
		tree := filepath.Join(dir, c.tree)
		if err := errors.Join(os.MkdirAll(tree, 0o755), c.make(tree)); err != nil {
			t.Fatal(err)
		}
		told := false
		for _, check := range Probe(tree, filepath.Join(dir, "state")) {
			if check.Name == togetherCheck {
				t.Log(c.tree, check.OK, check.Detail)
				told = check.OK == c.kept && (check.OK || check.Detail != "")
			} else if !check.OK && check.Needed {
				t.Errorf("%s: %+v", c.tree, check)
			}
		}
		if !told {
			t.Errorf("%s: told wrongly or not at all", c.tree)
		}
	}
}

// TestTrashForbidden: what chattr forbids to remove does not stay in the trash.
func TestTrashForbidden(t *testing.T) {
	dir := testns.NewImage(t, testns.ImageOptions{}).Dir
	tree := filepath.Join(dir, "srv", "app")
	sh(t, dir, "mkdir -p srv/app")
	d, err := New(Options{Tree: tree, State: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	sh(t, filepath.Join(d.layers, "trash"), `mkdir -p one/d/e two; echo x > one/d/e/f; ln -s /etc/passwd one/d/l; mkfifo one/d/p
echo y > two/y; chattr +i one/d/e/f; chattr +a one/d; chattr +i two`)
	if err := d.EmptyTrash(context.Background()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Join(d.layers, "trash")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	sh(t, dir, "chattr -R -f -ia state || true")
}
