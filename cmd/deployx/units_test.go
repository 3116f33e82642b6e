package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// As systemd-escape --path --suffix=mount has them (252).
func TestMountUnit(t *testing.T) {
	for path, want := range map[string]string{
		"/": "-.mount", "/srv": "srv.mount", "/srv/app/": "srv-app.mount", "/a-b/.c.d": `a\x2db-.c.d.mount`,
		"/.hidden": `\x2ehidden.mount`, "/sp ace/ü": `sp\x20ace-\xc3\xbc.mount`,
	} {
		if got := mountUnit(path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
}

func TestUnitWord(t *testing.T) {
	for s, want := range map[string]string{
		"/srv/app": "/srv/app", "": `""`, "a b": `"a b"`, `q"\`: `"q\"\\"`, "50%": "50%%", "l\n": `"l\x0a"`, "it's": `"it's"`, "#": `"#"`,
	} {
		if got := unitWord(s); got != want {
			t.Errorf("%q is %s, want %s", s, got, want)
		}
	}
	if got := commandLine([]string{"/bin/x", "$HOME", "a;b"}); got != `/bin/x $$HOME "a;b"` {
		t.Error(got)
	}
}

// The mount that a tree is on is waited for, its own is not, nor another.
func TestTreeMounts(t *testing.T) {
	testns.Need(t)
	on, other := testns.NewImage(t, testns.ImageOptions{}), testns.NewImage(t, testns.ImageOptions{})
	trees := []snapshot.Tree{{Path: filepath.Join(on.Dir, "srv", "app"), Store: filepath.Join(on.Dir, ".deployx", "app")}}
	local, remote, err := treeMounts(trees)
	if err != nil || len(remote) > 0 || len(local) == 0 || local[len(local)-1] != on.Dir {
		t.Errorf("local %q, remote %q: %v", local, remote, err)
	}
	for _, p := range local {
		if p == other.Dir {
			t.Error("a mount that no tree is on")
		}
	}
}

func TestNetworkMounts(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fstab")
	const text = "# a comment\n/dev/a / ext4 defaults 0 1\niqn:x /srv/san ext4 rw,_netdev,noatime 0 0\nhost:/x /srv/nfs nfs rw\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := netdevMounts(file); !reflect.DeepEqual(got, map[string]bool{"/srv/san": true}) {
		t.Error(got)
	}
	if got := netdevMounts(file + "none"); len(got) != 0 {
		t.Error(got)
	}
	for fs, want := range map[string]bool{"nfs4": true, "fuse.sshfs": true, "ext4": false, "fuse.rclone": false, "overlay": false} {
		if networkType(fs) != want {
			t.Errorf("%s: %v", fs, !want)
		}
	}
}
