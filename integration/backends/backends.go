// Package backends runs real Socket.IO servers, and a proxy that misbehaves,
// on loopback for tests. It is not for anything but tests. What the servers
// answer is told in README.md beside this file.
package backends

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The kinds of servers.
const (
	Node   = "node"
	Python = "python"
)

// Kinds are all of them.
func Kinds() []string { return []string{Node, Python} }

// Backend is one server, in a process of its own.
type Backend struct {
	Kind string
	Port string // kept over restarts

	env    []string
	cmd    *exec.Cmd
	stdin  io.Closer
	output *lockedBuffer
}

// Start runs a server of that kind until the test ends. env is added to the
// environment. If the kind is not installed the test is skipped, or fails if
// CI=true.
func Start(t testing.TB, kind string, env ...string) *Backend {
	t.Helper()
	b := &Backend{Kind: kind, Port: "0", env: env}
	b.start(t)
	t.Cleanup(func() {
		b.Kill()
		if t.Failed() {
			t.Logf("%s server said:\n%s", kind, b.output)
		}
	})
	return b
}

// URL of the server.
func (b *Backend) URL() string { return "http://" + b.Addr() }

// Addr is its host and port.
func (b *Backend) Addr() string { return "127.0.0.1:" + b.Port }

// Restart runs the server anew on the same port. Kill it before.
func (b *Backend) Restart(t testing.TB) {
	t.Helper()
	b.start(t)
}

// Kill ends the server by SIGKILL and waits for its end. Calling it again does
// nothing.
func (b *Backend) Kill() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill() // it may have ended
	_ = b.cmd.Wait()         // killed is what we want it to say
	_ = b.stdin.Close()
	b.cmd = nil
}

// Freeze stops the server by SIGSTOP; Thaw lets it go on.
func (b *Backend) Freeze(t testing.TB) { b.signal(t, syscall.SIGSTOP) }

// Thaw is told at Freeze.
func (b *Backend) Thaw(t testing.TB) { b.signal(t, syscall.SIGCONT) }

func (b *Backend) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := b.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func (b *Backend) start(t testing.TB) {
	t.Helper()
	b.cmd = command(t, b.Kind)
	b.cmd.Env = append(append(os.Environ(), b.env...), "PORT="+b.Port)
	b.output = &lockedBuffer{}
	b.cmd.Stderr = b.output
	stdout, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if b.stdin, err = b.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slow := time.AfterFunc(30*time.Second, func() { _ = b.cmd.Process.Kill() })
	defer slow.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	port, ok := strings.CutPrefix(strings.TrimSpace(line), "listening ")
	if err != nil || !ok {
		t.Fatalf("%s server did not start: %v\n%s%s", b.Kind, err, line, b.output)
	}
	b.Port = port
}

func command(t testing.TB, kind string) *exec.Cmd {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Join(filepath.Dir(file), kind)
	switch kind {
	case Node:
		if _, err := os.Stat(filepath.Join(dir, "node_modules", "socket.io")); err != nil {
			missing(t, "Node's socket.io")
		}
		return exec.Command("node", filepath.Join(dir, "server.mjs"))
	case Python:
		// Debian's Python: another one in PATH does not see Debian's packages.
		const python = "/usr/bin/python3"
		if err := exec.Command(python, "-c", "import socketio, aiohttp").Run(); err != nil {
			missing(t, "python-socketio with aiohttp")
		}
		return exec.Command(python, filepath.Join(dir, "server.py"))
	}
	t.Fatalf("no backend is called %q", kind)
	return nil
}

// missing skips the test, or fails it where a skip would hide that it never ran.
func missing(t testing.TB, what string) {
	t.Helper()
	why := fmt.Sprintf("%s is not installed: run integration/setup.sh", what)
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip("SKIPPED, NOT TESTED: " + why)
}

// lockedBuffer keeps what a process says while a test may read it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
