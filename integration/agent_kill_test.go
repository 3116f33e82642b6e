package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAgentKilledAtAnyMoment kills the agent again and again while commands
// come, and sends each command until its result is there, under the same id.
// Whatever the moment: no command is run twice, each has one result, and a
// result that says success means that it ran.
func TestAgentKilledAtAnyMoment(t *testing.T) {
	b, h := startBoard(t, "node"), newHost(t)
	rounds := 15
	if testing.Short() {
		rounds = 4
	}
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	h.run(b.url(), "--on-pinned", "stop")
	b.registered(1)
	n := 0
	for round := range rounds {
		for range 4 {
			b.send("execute_command", obj{"command_id": fmt.Sprint("c", n), "command": h.counting(n)})
			n++
		}
		time.Sleep(time.Duration(rnd.IntN(120)) * time.Millisecond)
		h.kill()
		h.run(b.url(), "--on-pinned", "stop")
		b.registered(round + 2)
	}
	for i := range n {
		id := fmt.Sprint("c", i)
		for !b.soon(about("command_completed", id), 300*time.Millisecond) {
			b.send("execute_command", obj{"command_id": id, "command": h.counting(i)})
		}
	}
	runs := map[string]int{}
	text, err := os.ReadFile(filepath.Join(h.dir, "runs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Fields(string(text)) {
		runs[l]++
	}
	succeeded, cut := 0, 0
	for id, g := range b.results("command_completed", "command_id") {
		i := strings.TrimPrefix(id, "c")
		switch {
		case runs[i] > 1:
			t.Errorf("%s was run %d times", id, runs[i])
		case g.ok():
			succeeded++
			if runs[i] != 1 || g.str("output") != "out "+i+"\n" {
				t.Errorf("%s succeeded and was run %d times: %v", id, runs[i], g)
			}
		default:
			cut++
			if g.str("code") != "interrupted" || g.Payload["not_run"] == true && runs[i] != 0 {
				t.Errorf("%s was run %d times: %v", id, runs[i], g)
			}
		}
	}
	t.Logf("%d commands under %d kills: %d succeeded, %d were cut off", n, rounds, succeeded, cut)
	if succeeded+cut != n {
		t.Errorf("%d results of %d", succeeded+cut, n)
	}
}

// TestAgentExamples runs the examples as a reader would.
func TestAgentExamples(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		h := newHost(t)
		server := (&board{t: t, kind: kind}).command() // skips if it is not installed
		if kind == "node" {
			dir := filepath.Join(h.dir, "example")
			if err := os.CopyFS(dir, os.DirFS("../examples/backend-node")); err != nil {
				t.Fatal(err)
			}
			modules, err := filepath.Abs("backends/node/node_modules")
			if err == nil {
				err = os.Symlink(modules, filepath.Join(dir, "node_modules"))
			}
			if err != nil {
				t.Fatal(err)
			}
			server = exec.Command("node", filepath.Join(dir, "server.mjs"))
		} else {
			server.Args[1] = "../examples/backend-python/server.py"
		}
		server.Env = append(os.Environ(), "PORT=0", "TOKEN=s3cret")
		out := &logged{}
		server.Stdout, server.Stderr = out, out
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = server.Process.Kill(); _ = server.Wait() }()
		until := func(word string) string {
			t.Helper()
			for end := time.Now().Add(soon); ; time.Sleep(20 * time.Millisecond) {
				out.mu.Lock()
				said := out.b.String()
				out.mu.Unlock()
				if _, rest, ok := strings.Cut(said, word); ok && strings.Contains(rest, "\n") {
					line, _, _ := strings.Cut(rest, "\n")
					return line
				}
				if time.Now().After(end) {
					t.Fatalf("the example does not say %q:\n%s", word, said)
				}
			}
		}
		port := strings.TrimSpace(until("listening "))
		token := filepath.Join(h.dir, "token")
		if err := os.WriteFile(token, []byte("s3cret"), 0o600); err != nil {
			t.Fatal(err)
		}
		h.run("http://127.0.0.1:"+port, "--token-file", token)
		until("demo done: ")
		out.mu.Lock()
		defer out.mu.Unlock()
		if !bytes.Contains(out.b.Bytes(), []byte("5 of 5")) || bytes.Contains(out.b.Bytes(), []byte("Traceback")) {
			t.Errorf("the example said:\n%s", out.b.String())
		}
	})
}
