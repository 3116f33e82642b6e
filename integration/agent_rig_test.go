package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"deployx/internal/heard"
	"deployx/internal/testns"
)

// soon bounds every wait of the agent's tests; nothing is measured by it.
const soon = 60 * time.Second

type obj = map[string]any

// got is a line of a backend's stdout.
type got struct {
	Event   string `json:"event"`
	Ack     string `json:"ack"`
	Payload obj    `json:"payload"`
}

func (g got) str(k string) string { s, _ := g.Payload[k].(string); return s }
func (g got) ok() bool            { b, _ := g.Payload["success"].(bool); return b }

// about says that g is an event of a name, about a command, batch or snapshot.
func about(name, id string) func(got) bool {
	return func(g got) bool {
		return g.Event == name && (id == "" || g.str("command_id") == id || g.str("batch_id") == id || g.str("snapshot_id") == id)
	}
}

// board is a backend (testdata/agent/server.*) that the test drives.
type board struct {
	t    testing.TB
	kind string
	env  []string
	port string

	cmd   *exec.Cmd
	stdin io.WriteCloser
	errs  bytes.Buffer
	ended chan struct{}

	events heard.Log[got] // over all its lives
	asked  int
}

func kinds() []string { return []string{"node", "python"} }

func startBoard(t testing.TB, kind string, env ...string) *board {
	t.Helper()
	b := &board{t: t, kind: kind, env: env, port: "0"}
	b.start()
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("the %s backend said: %s", kind, b.errs.String())
		}
	})
	return b
}

func (b *board) start() {
	b.t.Helper()
	b.cmd = b.command()
	b.cmd.Env = append(append(os.Environ(), b.env...), "PORT="+b.port)
	b.cmd.Stderr = &b.errs
	var err error
	if b.stdin, err = b.cmd.StdinPipe(); err != nil {
		b.t.Fatal(err)
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	n := len(b.find(about("_listening", "")))
	b.ended = make(chan struct{})
	go b.read(out, b.ended)
	b.port = b.wait(n+1, about("_listening", ""))[n].str("port")
}

func (b *board) command() *exec.Cmd {
	b.t.Helper()
	dir, err := filepath.Abs("testdata/agent")
	if err != nil {
		b.t.Fatal(err)
	}
	if b.kind == "node" {
		if _, err := os.Stat("backends/node/node_modules/socket.io"); err != nil {
			notInstalled(b.t, "Node's socket.io")
		}
		return exec.Command("node", filepath.Join(dir, "server.mjs"))
	}
	const python = "/usr/bin/python3" // Debian's, which sees Debian's packages
	if exec.Command(python, "-c", "import socketio, aiohttp").Run() != nil {
		notInstalled(b.t, "python-socketio with aiohttp")
	}
	return exec.Command(python, filepath.Join(dir, "server.py"))
}

func notInstalled(t testing.TB, what string) {
	t.Helper()
	why := what + " is not installed: run integration/setup.sh"
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip("SKIPPED, NOT TESTED: " + why)
}

func (b *board) read(out io.Reader, ended chan struct{}) {
	defer close(ended)
	r := bufio.NewReaderSize(out, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var g got
		if err := json.Unmarshal(line, &g); err != nil {
			b.t.Errorf("%s: %v", line, err)
			return
		}
		b.events.Add(g)
	}
}

// kill is SIGKILL.
func (b *board) kill() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill() // it may have ended
	<-b.ended
	_ = b.cmd.Wait()
	b.cmd = nil
}

func (b *board) addr() string { return "127.0.0.1:" + b.port }
func (b *board) url() string  { return "http://" + b.addr() }

func (b *board) find(want func(got) bool) []got { return b.events.Find(want) }

// wait waits for n events that are wanted.
func (b *board) wait(n int, want func(got) bool) []got {
	b.t.Helper()
	return b.events.Wait(b.t, soon, n, fmt.Sprintf("%d of the event", n), want)
}

func (b *board) one(name, id string) got {
	b.t.Helper()
	return b.wait(1, about(name, id))[0]
}

// output is what a command printed: each seq once, in order. A piece that is
// missing fails the test.
func (b *board) output(id string) string {
	b.t.Helper()
	pieces := map[int]string{}
	for _, g := range b.find(about("command_output", id)) {
		seq, _ := g.Payload["seq"].(float64)
		pieces[int(seq)] = g.str("output")
	}
	var all strings.Builder
	for i := range len(pieces) {
		p, ok := pieces[i]
		if !ok {
			b.t.Errorf("piece %d of the output of %s is missing", i, id)
		}
		all.WriteString(p)
	}
	return all.String()
}

func (b *board) registered(n int) { b.t.Helper(); b.wait(n, about("agent_register", "")) }

// results are the payloads of an event, by an id in it; twice the same is once,
// and not the same is an error.
func (b *board) results(name, key string) map[string]got {
	b.t.Helper()
	all := map[string]got{}
	for _, g := range b.find(func(g got) bool { return g.Event == name }) {
		id := g.str(key)
		if old, ok := all[id]; ok && fmt.Sprint(old) != fmt.Sprint(g) {
			b.t.Errorf("%s of %s came twice, and not the same:\n%v\n%v", name, id, old, g)
		}
		all[id] = g
	}
	return all
}

func (b *board) send(event string, payload any) { b.t.Helper(); b.write(event, payload, "") }

func (b *board) write(event string, payload any, ack string) {
	b.t.Helper()
	line, err := json.Marshal(obj{"event": event, "payload": payload, "ack": ack})
	if err == nil {
		_, err = b.stdin.Write(append(line, '\n'))
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// ask sends a request and waits for its ack.
func (b *board) ask(event string, payload any) got {
	b.t.Helper()
	b.asked++
	id := fmt.Sprint("ack", b.asked)
	b.write(event, payload, id)
	return b.wait(1, func(g got) bool { return g.Ack == id })[0]
}

// host is a tree and an agent that serves it, in a process of its own.
type host struct {
	t      testing.TB
	binary string
	env    []string // beside ours
	dir    string   // holds app (the tree) and state

	cmd  *exec.Cmd
	log  logged
	used time.Duration // of CPU, by the agent alone, when it has been stopped
}

// logged is what the agent says, while it says it.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (h *host) said() string {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	return h.log.b.String()
}

// command is deployx agent with args.
func (h *host) command(args ...string) *exec.Cmd {
	return exec.Command(h.binary, append([]string{"agent"}, args...)...)
}

var buildOnce sync.Mutex // go build is heavy

func newHost(t testing.TB) *host {
	t.Helper()
	testns.Need(t)
	h := &host{t: t, dir: t.TempDir(), binary: os.Getenv("DEPLOYX_TEST_BINARY")}
	if h.binary == "" {
		h.binary = filepath.Join(h.dir, "deployx")
		buildOnce.Lock()
		defer buildOnce.Unlock()
		if out, err := exec.Command("go", "build", "-o", h.binary, "deployx/cmd/deployx").CombinedOutput(); err != nil {
			t.Fatalf("build: %v\n%s", err, out)
		}
	}
	if err := os.Mkdir(h.tree(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.tree(), "base"), []byte("base\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.stop()
		h.unmount()
		if t.Failed() {
			lines := strings.Split(h.said(), "\n")
			t.Logf("the agent said:\n%s", strings.Join(lines[max(0, len(lines)-40):], "\n"))
		}
	})
	return h
}

func (h *host) tree() string  { return filepath.Join(h.dir, "app") }
func (h *host) state() string { return filepath.Join(h.dir, "state") }

// run starts the agent.
func (h *host) run(url string, flags ...string) {
	h.t.Helper()
	args := append([]string{
		"--url", url, "--tree", h.tree(), "--state", h.state(), "--log-level", "debug", "--grace", "5s",
		"--reconnect-min", "20ms", "--reconnect-max", "200ms", "--reconnect-refused", "20ms",
	}, flags...)
	h.cmd = h.command(args...)
	h.cmd.Env = append(os.Environ(), h.env...)
	h.cmd.Stdout, h.cmd.Stderr = &h.log, &h.log
	if err := h.cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
}

// stop is SIGTERM; the agent must end with 0.
func (h *host) stop() {
	h.t.Helper()
	if h.cmd == nil {
		return
	}
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	if err := h.cmd.Wait(); err != nil {
		h.t.Errorf("the agent ended with %v", err)
	}
	h.used = h.cmd.ProcessState.UserTime() + h.cmd.ProcessState.SystemTime()
	h.cmd = nil
}

// kill is SIGKILL of the agent alone, as the OOM killer does.
func (h *host) kill() {
	h.t.Helper()
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
	h.cmd = nil
}

func (h *host) read(name string) string {
	b, err := os.ReadFile(filepath.Join(h.tree(), name))
	if err != nil {
		return "(" + err.Error() + ")"
	}
	return string(b)
}

// unmount removes what the drivers have mounted, so that all can be removed.
func (h *host) unmount() {
	points, err := testns.MountsBelow(h.dir)
	for i := len(points) - 1; i >= 0; i-- {
		if out, e := exec.Command("umount", points[i]).CombinedOutput(); e != nil {
			h.t.Errorf("%s", out)
		}
	}
	if err != nil {
		h.t.Error(err)
	}
}

// rss is the agent's resident memory in KiB.
func (h *host) rss() int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.cmd.Process.Pid))
	if err != nil {
		h.t.Fatal(err)
	}
	var n int
	for line := range strings.Lines(string(b)) {
		if s, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			_, _ = fmt.Sscan(s, &n)
		}
	}
	return n
}

func uid(fi os.FileInfo) uint32 { return fi.Sys().(*syscall.Stat_t).Uid }
