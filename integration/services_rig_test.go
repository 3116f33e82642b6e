package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
	"deployx/session"
	"deployx/snapshot"
)

// A site is a tree in which a service runs while commands change what is in app/,
// and are undone and done again.
type site struct {
	*testing.T
	tree string
	s    *session.Session
	kit  string // where scripts/services.sh has put the servers
	rnd  *rand.Rand
	n    int // of the command

	done   []step
	undone [][]step // by each rollback that can be taken back
	// settled, if there is one, is called after each command, rollback and redo.
	settled func()
	// more are commands of a test, beside those of deploys.
	more []string
}

// A step is a command, and what app/ was before it and after.
type step struct {
	id            snapshot.ID
	before, after treecmp.Picture
}

// deploys are what commands do: %[1]d is the command's number.
var deploys = []string{
	"echo release %[1]d >app/new && mv app/new app/index.html",
	"mkdir -p app/r%[1]d/sub && cp app/index.html app/r%[1]d/sub/ && ln -sfn r%[1]d app/current",
	"rm -rf app/r*; echo %[1]d >>app/history",
	"mkdir -p app/old && cp app/index.html app/old/%[1]d && mv app/old app/older%[1]d",
	"chmod -R g-w,o+r app; touch app/t%[1]d; sync app/t%[1]d",
}

func newSite(t *testing.T) *site {
	t.Helper()
	testns.Need(t)
	testns.LeftBehind(t)
	dir, err := os.MkdirTemp("", "dx") // short: the path of a socket has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) //nolint:errcheck // a temporary directory
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	h := &site{T: t, tree: filepath.Join(dir, "srv", "app"), rnd: rand.New(rand.NewPCG(seed, 0))}
	for _, sub := range []string{"app", "run", "logs", "data"} {
		if err := os.MkdirAll(filepath.Join(h.tree, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, filepath.Dir(h.tree)} { // for servers that are not root
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.s = openTree(t, dir, h.tree)
	// A service that was started before would stand below the mount.
	if _, err := h.s.Run(context.Background(), session.Command{Text: "echo release 0 >" + h.path("app/index.html")}); err != nil {
		t.Fatal(err)
	}
	return h
}

// unpack makes sure of the servers that come from packages.
func (h *site) unpack() {
	h.Helper()
	var why bytes.Buffer
	c := exec.Command("../scripts/services.sh")
	c.Stderr = &why
	out, err := c.Output()
	if err != nil {
		h.Log(why.String())
		notInstalled(h.T, "nginx, redis or PostgreSQL")
	}
	h.kit = strings.TrimSpace(string(out))
}

func (h *site) path(name string) string { return filepath.Join(h.tree, name) }

func (h *site) put(name, text string) {
	h.Helper()
	if err := os.WriteFile(h.path(name), []byte(text), 0o644); err != nil {
		h.Fatal(err)
	}
}

func (h *site) read(name string) string {
	h.Helper()
	b, err := os.ReadFile(h.path(name))
	if err != nil {
		h.Fatal(err)
	}
	return string(b)
}

// program finds a server's program: in the kit, or where the machine has it.
func (h *site) program(name string) string {
	h.Helper()
	for _, dir := range []string{"usr/sbin", "usr/bin", "usr/lib/postgresql/*/bin"} {
		for _, root := range []string{h.kit, "/"} {
			if found, err := filepath.Glob(filepath.Join(root, dir, name)); err == nil && len(found) > 0 {
				return found[len(found)-1]
			}
		}
	}
	notInstalled(h.T, name)
	return ""
}

// libraries is the environment in which the kit's programs find their libraries.
func (h *site) libraries() string {
	var dirs []string
	for _, pattern := range []string{"lib/*-linux-*", "usr/lib/*-linux-*"} {
		found, err := filepath.Glob(filepath.Join(h.kit, pattern))
		if err != nil {
			h.Fatal(err)
		}
		dirs = append(dirs, found...)
	}
	return "LD_LIBRARY_PATH=" + strings.Join(dirs, ":")
}

// command is a program of the kit's, or of the machine's; not as root for servers
// that refuse that.
func (h *site) command(root bool, name string, args ...string) *exec.Cmd {
	h.Helper()
	c := exec.Command(h.program(name), args...)
	c.Env = append(os.Environ(), h.libraries(), "LC_ALL=C", "TZ=UTC", "PGHOST="+h.path("run"), "PGUSER=postgres")
	c.Dir = h.tree
	if !root {
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	return c
}

const nobody = 65534

// tool runs a program to its end.
func (h *site) tool(root bool, name string, args ...string) string {
	h.Helper()
	out, err := h.command(root, name, args...).CombinedOutput()
	if err != nil {
		h.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A daemon is a server that runs until it is told to end.
type daemon struct {
	*exec.Cmd
	h     *site
	out   bytes.Buffer
	ended chan error
}

// serve starts a server, which ends with the test if not before.
func (h *site) serve(c *exec.Cmd) *daemon {
	h.Helper()
	d := &daemon{Cmd: c, h: h, ended: make(chan error, 1)}
	c.Stdout, c.Stderr = &d.out, &d.out
	if err := c.Start(); err != nil {
		h.Fatal(err)
	}
	go func() { d.ended <- c.Wait() }()
	h.Cleanup(func() { d.end(unix.SIGTERM) })
	return d
}

// end ends it with a signal, and waits for that. It may be called again.
func (d *daemon) end(sig unix.Signal) {
	if d.ended == nil {
		return
	}
	_ = d.Process.Signal(sig) // it may have ended
	select {
	case <-d.ended:
	case <-time.After(soon):
		d.h.Errorf("%s does not end", d.Path)
		_ = d.Process.Kill()
		<-d.ended
	}
	d.ended = nil
	if d.h.Failed() {
		d.h.Logf("%s said: %s", filepath.Base(d.Path), d.out.String())
	}
}

// until waits for a condition.
func (h *site) until(what string, ok func() bool) {
	h.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(2 * time.Millisecond) { //nolint:forbidigo // there is no event
		if time.Now().After(end) {
			h.Fatalf("not within %v: %s", soon, what)
		}
	}
}

// work runs random commands, rollbacks and redos, and compares app/ after each.
func (h *site) work(more func() bool) {
	h.Helper()
	start := time.Now()
	rolled, redone := 0, 0
	for h.n = 1; more(); h.n++ {
		switch n := h.rnd.IntN(4); {
		case n == 0 && len(h.done) > 0:
			h.back(1 + h.rnd.IntN(min(3, len(h.done))))
			rolled++
		case n == 1 && len(h.undone) > 0:
			h.again()
			redone++
		default:
			h.run(oneOf(h.rnd, append(deploys, h.more...)))
		}
		if h.settled != nil {
			h.settled()
		}
	}
	h.Logf("%d commands, %d rollbacks and %d redos in %v", h.n-1-rolled-redone, rolled, redone, time.Since(start).Round(time.Millisecond))
}

func oneOf(rnd *rand.Rand, list []string) string { return list[rnd.IntN(len(list))] }

func (h *site) run(text string) {
	h.Helper()
	if strings.Contains(text, "%") {
		text = fmt.Sprintf(text, h.n)
	}
	before := h.app()
	var out bytes.Buffer
	r, err := h.s.Run(context.Background(), session.Command{Text: "cd " + h.tree + "; " + text, Stdout: &out, Stderr: &out})
	if err != nil {
		h.Fatalf("%s: %v", text, err)
	}
	if r.Snapshot.ExitCode != 0 || r.Snapshot.Mode != snapshot.ModeSealed || len(r.Snapshot.PinnedBy) == 0 {
		h.Errorf("%s: exit %d, mode %q, pinned by %v\n%s", text, r.Snapshot.ExitCode, r.Snapshot.Mode, r.Snapshot.PinnedBy, out.String())
	}
	h.done, h.undone = append(h.done, step{r.Snapshot.ID, before, h.app()}), nil
}

func (h *site) app() treecmp.Picture {
	h.Helper()
	return look(h.T, h.path("app"), false)
}

func (h *site) back(n int) {
	h.Helper()
	at := len(h.done) - n
	u, err := h.s.Rollback(context.Background(), session.Target{ID: h.done[at].id}, session.RollbackOptions{})
	if err != nil {
		h.Fatalf("rollback of %d: %v", n, err)
	}
	if !u.InPlace || !u.Verified {
		h.Errorf("rollback: in place %v, verified %v", u.InPlace, u.Verified)
	}
	h.undone, h.done = append(h.undone, h.done[at:]), h.done[:at:at]
	h.same("rolled back", h.undone[len(h.undone)-1][0].before)
}

func (h *site) again() {
	h.Helper()
	if _, err := h.s.Redo(context.Background(), 1, session.RollbackOptions{}); err != nil {
		h.Fatalf("redo: %v", err)
	}
	last := len(h.undone) - 1
	h.done, h.undone = append(h.done, h.undone[last]...), h.undone[:last]
	h.same("done again", h.done[len(h.done)-1].after)
}

func (h *site) same(what string, want treecmp.Picture) {
	h.Helper()
	if d := treecmp.Diff(want, h.app(), treecmp.Options{AnyNlink: true}); len(d) > 0 {
		h.Errorf("step %d, %s:\n%s", h.n, what, d)
	}
}
