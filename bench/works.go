package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// material is what the works work on.
type material struct {
	dir   string // a temporary directory
	tar   string // some thousand source files
	cache string // npm's; "" if there is none
	lock  string // a directory with package.json and package-lock.json
	mod   string // a Go program with a warm build cache in cache/
}

// materials makes what does not belong to one filesystem: an archive of the Go
// standard library's larger packages, and a cache for npm.
func materials(o options) (m material, err error) {
	if m.dir, err = os.MkdirTemp(o.dir, "deployx-bench-"); err != nil {
		return m, err
	}
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return m, fmt.Errorf("go env GOROOT: %w", err)
	}
	m.tar = filepath.Join(m.dir, "src.tar")
	src := filepath.Join(strings.TrimSpace(string(root)), "src")
	if err := command(src, "tar", "cf", m.tar, "runtime", "net", "crypto", "go", "internal", "math", "os", "encoding"); err != nil {
		return m, err
	}
	m.mod = filepath.Join(m.dir, "mod")
	return m, errors.Join(m.fillCache(), module(m.mod))
}

// fillCache lets npm load a few packages. Without a registry npm is left out.
func (m *material) fillCache() error {
	m.lock = filepath.Join(m.dir, "npm")
	if err := os.MkdirAll(m.lock, 0o755); err != nil {
		return err
	}
	const manifest = `{"name":"bench","version":"1.0.0","private":true,"dependencies":{"express":"4","lodash":"4","react-dom":"18"}}`
	if err := os.WriteFile(filepath.Join(m.lock, "package.json"), []byte(manifest), 0o644); err != nil {
		return err
	}
	cache := filepath.Join(m.dir, "cache")
	err := command(m.lock, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--omit-lockfile-registry-resolved=false", "--cache", cache)
	if err == nil {
		m.cache = cache
		return os.RemoveAll(filepath.Join(m.lock, "node_modules"))
	}
	fmt.Fprintln(os.Stderr, "bench: npm ci is not measured:", err) //nolint:errcheck // nowhere to tell
	return nil
}

// line is a work that is a shell line; restore is one too.
func line(name, do, restore string) work {
	return work{
		name: name, do: func(dir string) error { return shell(dir, do) },
		restore: func(dir string) error { return shell(dir, restore) },
	}
}

func (w work) on(base func(dir string) error) work {
	w.base = base
	return w
}

func works(m material) []work {
	sources := func(dir string) error { return shell(dir, "mkdir src && tar xf "+m.tar+" -C src") }
	all := []work{
		{name: "create 10,000 files", do: create, restore: func(dir string) error { return os.RemoveAll(filepath.Join(dir, "new")) }},
		line("untar", "mkdir new && tar xf "+m.tar+" -C new", "rm -rf new"),
		line("git checkout of 2,000 changes", "git checkout -q other", "git checkout -q main").on(repository),
	}
	if m.cache != "" {
		all = append(all, line("npm ci, offline cache", "npm ci --offline --no-audit --no-fund --ignore-scripts --cache "+m.cache, "rm -rf node_modules").
			on(func(dir string) error { return shell(dir, "cp "+m.lock+"/package*.json .") }))
	}
	none := func(string) error { return nil }
	return append(all,
		line("go build", `export GOCACHE=$PWD/cache; echo "package main; const answer = $RANDOM" > answer.go; go build -o prog .`, "true").
			on(func(dir string) error { return shell(dir, "cp -a "+m.mod+"/. .") }),
		work{name: "stat walk, first in the view", do: statWalk, restore: none}.on(sources),
		work{name: "stat walk, again", warm: statWalk, do: statWalk, restore: none}.on(sources),
		line("grep -r, first in the view", "grep -rc Errorf src >/dev/null || true", "true").on(sources),
		line("chmod -R", "chmod -R g+w src", "chmod -R g-w src").on(sources),
		line("chown -R", "chown -R 1:1 src", "chown -R 0:0 src").on(sources),
		line("rm -rf", "rm -rf src", "mkdir src && tar xf "+m.tar+" -C src").on(sources),
		line("sqlite, 1,000 transactions", "sqlite3 db < inserts", "cp -a db.old db").on(database),
		line("append to 1 GiB", "echo x >> big", "truncate -s 1G big").on(gibibytes(1)),
		onXFS(line("append to 1 GiB", "echo x >> big", "truncate -s 1G big").on(gibibytes(1))),
		line("chown -R of 2 GiB", "chown -R 1:1 .", "chown -R 0:0 .").on(gibibytes(2)),
	)
}

func onXFS(w work) work {
	w.fs = "xfs"
	return w
}

func create(dir string) error {
	if err := os.Mkdir(filepath.Join(dir, "new"), 0o755); err != nil {
		return err
	}
	for i := range 10_000 {
		if err := os.WriteFile(filepath.Join(dir, "new", fmt.Sprint(i)), []byte("some bytes\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func statWalk(dir string) error {
	return filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil {
			_, err = e.Info()
		}
		return err
	})
}

func repository(dir string) error {
	return shell(dir, `set -e
git init -q -b main; git config user.email bench@localhost; git config user.name bench
for d in $(seq 20); do mkdir $d; for f in $(seq 100); do echo "file $d $f" > $d/$f; done; done
git add -A; git commit -qm one; git checkout -qb other
for d in $(seq 20); do for f in $(seq 100); do echo "changed" >> $d/$f; done; done
git commit -qam two; git checkout -q main`)
}

// module is a program with a warm build cache.
func module(dir string) error {
	err := errors.Join(
		os.Mkdir(dir, 0o755),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module prog\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "main.go"), []byte("package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println(answer) }\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "answer.go"), []byte("package main\n\nconst answer = 42\n"), 0o644),
	)
	if err != nil {
		return err
	}
	return shell(dir, "GOCACHE=$PWD/cache go build -o prog .")
}

func database(dir string) error {
	return shell(dir, `sqlite3 db 'create table t(a,b)'; cp -a db db.old
for i in $(seq 1000); do echo "insert into t values($i,'some text');"; done > inserts`)
}

func gibibytes(n int) func(string) error {
	return func(dir string) error { return shell(dir, fmt.Sprintf("head -c %dG /dev/zero | tr '\\0' x > big", n)) }
}
