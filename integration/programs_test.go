package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/overlay"
	"deployx/session"
	"deployx/snapshot"
)

// programs are what people run in a tree. Each works on what those before left.
var programs = []struct{ name, needs, text string }{
	{"git init", "git", `git init -q -b main repo && cd repo && git config user.email a@b && git config user.name n && for i in $(seq 50); do mkdir -p d$i; echo $i > d$i/f; done && git add -A && git commit -qm one; cd ..`},
	{"git clone", "git", `git clone -q repo clone`},
	{"git checkout", "git", `(cd repo && git checkout -qb other && git rm -qr d1 d2 && git mv d3 moved && echo x > d4/f && git add -A && git commit -qm two && git checkout -q main && git checkout -q other)`},
	{"git gc", "git", `(cd repo && git gc -q --prune=now)`},
	{"git pull", "git", `(cd clone && git pull -q origin other)`},
	{"npm ci", "npm", `mkdir -p js/dep && (cd js && echo '{"name":"dep","version":"1.0.0","bin":{"dep":"d.js"}}' > dep/package.json && printf '#!/usr/bin/env node\nconsole.log(1)\n' > dep/d.js && echo '{"name":"app","version":"1.0.0","dependencies":{"dep":"file:dep"}}' > package.json && npm install --package-lock-only --offline --no-audit --no-fund >/dev/null && npm ci --offline --no-audit --no-fund >/dev/null && node_modules/.bin/dep)`},
	{"go build", "go", `mkdir -p gosrc && (cd gosrc && printf 'module m\ngo 1.21\n' > go.mod && printf 'package main\nfunc main() { println(1) }\n' > main.go && GOCACHE="$PWD/../gocache" GOFLAGS=-buildvcs=false go build -trimpath -o app . && ./app 2>/dev/null; rm -rf ../gocache)`},
	{"make", "make", `mkdir -p mk && (cd mk && printf 'all: a b\na:\n\techo a > a\nb: a\n\tcat a a > b\n' > Makefile && make -s && touch a && make -s)`},
	{"touch all", "touch", `find repo -exec touch -h -d '2010-03-04 05:06:07.123456789' {} +`},
	{"tar", "tar", `tar --format=posix -cf repo.tar repo && mkdir -p untar && tar xf repo.tar -C untar && rm -r untar/repo/d5 && tar xf repo.tar -C untar`},
	{"rsync", "rsync", `rsync -aHAX --delete repo/ mirror && rm -r mirror/d7 && echo more >> mirror/d8/f && rsync -aHAX --delete repo/ mirror`},
	{"cp -a", "cp", `cp -a repo copied && cp -a mirror/d8 copied/d9/f copied/d10`},
	{"dpkg-deb -x", "dpkg-deb", `mkdir -p p/DEBIAN p/usr/bin && printf 'Package: p\nVersion: 1\nArchitecture: all\nMaintainer: m <m@m>\nDescription: d\n' > p/DEBIAN/control && echo x > p/usr/bin/x && dpkg-deb -b p p.deb >/dev/null && dpkg-deb -x p.deb unpacked && rm p.deb`},
	{"sqlite", "sqlite3", `sqlite3 db 'create table t(a); insert into t values(1); insert into t values(2); delete from t where a=1;' && sqlite3 db 'pragma journal_mode=wal; insert into t select a+1 from t; pragma wal_checkpoint(truncate);' >/dev/null`},
	{"python venv", "python3", `python3 -m venv --without-pip venv && PYTHONDONTWRITEBYTECODE=1 venv/bin/python -c 'import sys; print(sys.prefix)'`},
	{"patch", "patch", `printf -- '--- a/d9/f\n+++ b/d9/f\n@@ -1 +1 @@\n-9\n+nine\n' | patch -s -p1 -d repo`},
	{"find -delete", "find", `find clone -name f -path '*1*' -delete`},
	{"mv directories", "mv", `mv repo/d10 repo/d11/inner && mv repo/d12 top && mkdir repo/d12 && mv top repo/d12/back && mv mirror mirror2`},
	{"chmod -R", "chmod", `chmod -R go-w,o-rx repo && chmod 4755 repo/d13/f && chmod 1777 repo/d14`},
	{"chown -R", "chown", `chown -R 1234:4321 clone && chown -h 5:6 js/node_modules/dep`},
	{"chgrp", "chgrp", `chgrp -R 77 copied && ln -s f copied/d11/l && chgrp -h 78 copied/d11/l`},
	{"setfacl", "setfacl", `setfacl -m u:99:r repo/d15/f && setfacl -d -m g:98:rx repo/d16`},
	{"setfattr", "setfattr", `setfattr -n user.note -v hello repo/d17/f && setfattr -n user.dir -v x repo/d18`},
	{"setcap", "setcap", `setcap cap_net_bind_service+ep repo/d19/f`},
	{"ln", "ln", `echo new > first && ln first second && ln -s first third && ln -sf /nowhere repo/dangling && ln -f repo/d20/f repo/d21/linked`},
	{"mkfifo", "mkfifo", `mkfifo pipe && mknod null c 1 3 && mknod blk b 7 200`},
	{"touch -d", "touch", `touch -d '2001-02-03 04:05:06.789012345' repo/d22/f repo/d23 && touch -h -d @77 third`},
	{"truncate sparse", "truncate", `truncate -s 1G sparse && echo end >> sparse && truncate -s 512M sparse`},
	{"rm and make again", "rm", `rm -rf repo/d24 && echo file > repo/d24 && rm repo/d24 && mkdir repo/d24 && rm -r js && mkdir js`},
	{"odd names", "touch", `touch -- 'sp ace' $'new\nline' 'qu"ote' "ap'os" 'co:lon' 'com,ma' 'back\slash' $'\xff\xfe' -dash "$(printf 'n%.0s' $(seq 255))" .wh.file`},
}

// TestPrograms runs real programs in a tree and in a plain directory at the
// same path, and compares the trees after each; then it undoes each, newest
// first, and compares again.
func TestPrograms(t *testing.T) {
	testns.Need(t)
	dir := t.TempDir()
	tree := filepath.Join(dir, "srv", "app")
	begin := time.Now().Add(-time.Second)
	want := plainRun(t, tree)
	s := openTree(t, dir, tree)
	before := []treecmp.Picture{look(t, tree, false)}
	set := relaxed(begin)
	var ids []snapshot.ID
	for i, p := range programs {
		var out bytes.Buffer
		r, err := s.Run(context.Background(), session.Command{Text: "cd " + tree + "; " + p.text, Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		if r.Snapshot.ExitCode != 0 {
			t.Fatalf("%s: exit %d\n%s", p.name, r.Snapshot.ExitCode, out.String())
		}
		if d := treecmp.Diff(want[i], look(t, tree, true), set); len(d) > 0 {
			t.Errorf("after %s:\n%s", p.name, d)
		}
		ids = append(ids, r.Snapshot.ID)
		before = append(before, look(t, tree, false))
	}
	for i := len(ids) - 1; i >= 0; i-- {
		if _, err := s.Rollback(context.Background(), session.Target{ID: ids[i]}, session.RollbackOptions{}); err != nil {
			t.Fatalf("undo %s: %v", programs[i].name, err)
		}
		if d := treecmp.Diff(before[i], look(t, tree, false), treecmp.Options{AnyNlink: true}); len(d) > 0 { // merged layers: docs/design.md
			t.Errorf("after undoing %s:\n%s", programs[i].name, d)
		}
	}
}

// relaxed leaves out what differs between two runs of a program (the times of that
// run, since begin; what a program sets is older), and link counts, which overlayfs
// cannot keep (docs/design.md).
func relaxed(begin time.Time) treecmp.Options {
	set := func(ns int64) int64 {
		if ns >= begin.UnixNano() {
			return 0
		}
		return ns
	}
	return treecmp.Options{WantTime: set, GotTime: set, AnyNlink: true, HoleSlack: 4 << 20}
}

// look takes a picture. For a comparison between runs, files that hold times
// or inode numbers are left out.
func look(t *testing.T, tree string, betweenRuns bool) treecmp.Picture {
	t.Helper()
	p, err := treecmp.Take(tree)
	if err != nil {
		t.Fatal(err)
	}
	if !betweenRuns {
		return p
	}
	for path, e := range p {
		if strings.HasSuffix(path, ".git/index") || strings.HasSuffix(path, "repo.tar") || strings.HasSuffix(path, "FETCH_HEAD") {
			e.Sum, e.Holes = "", 0
			p[path] = e
		}
	}
	return p
}

// plainRun runs the programs in a plain directory, and takes it away.
func plainRun(t *testing.T, tree string) (after []treecmp.Picture) {
	t.Helper()
	if err := os.MkdirAll(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p.needs); err != nil {
			t.Fatalf("%s is not installed: run scripts/setup.sh", p.needs)
		}
		c := exec.Command("bash", "-c", p.text)
		c.Dir, c.Env = tree, environment()
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("plain %s: %v\n%s", p.name, err, out)
		}
		after = append(after, look(t, tree, true))
	}
	if err := os.RemoveAll(tree); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	return after
}

// environment makes programs do the same thing twice.
func environment() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/root", "LANG=C.UTF-8",
		"GIT_AUTHOR_DATE=2020-01-01T00:00:00Z", "GIT_COMMITTER_DATE=2020-01-01T00:00:00Z", "SOURCE_DATE_EPOCH=1577836800",
	}
}

func openTree(t *testing.T, dir, tree string) *session.Session {
	t.Helper()
	state := filepath.Join(dir, "state")
	o := session.Options{
		State: snapshot.NewState(state),
		Tree:  snapshot.Tree{Path: tree, Driver: overlay.Name, Created: time.Now(), Store: session.ChooseStore(tree, state)},
		OpenDriver: func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
			return overlay.New(overlay.Options{Tree: t.Path, State: t.Store})
		},
	}
	o.Warn = func(s string) { t.Log("warning:", s) }
	o.Shell.Env = environment()
	if err := o.State.Add(o.Tree); err != nil {
		t.Fatal(err)
	}
	s, err := session.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		for unix.Unmount(tree, unix.MNT_DETACH) == nil { //nolint:revive // until nothing is mounted
		}
	})
	return s
}
