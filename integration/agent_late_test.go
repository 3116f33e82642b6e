package integration

import (
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A job that prints outlives the agent that is stopped; what it prints while there is
// none is added to its command's output.
func TestAgentLateOutput(t *testing.T) {
	b, h := newHome(t), newHost(t)
	web := httptest.NewServer(b.srv)
	t.Cleanup(web.Close)
	gate := filepath.Join(h.dir, "gate")
	if out, err := exec.Command("mkfifo", gate).CombinedOutput(); err != nil {
		t.Fatalf("mkfifo: %v: %s", err, out)
	}
	h.run(web.URL)
	s := <-b.sockets
	command := fmt.Sprintf("{ cd /; read x <%[1]s; echo late; echo err >&2; echo $? >%[1]s.status; } & echo early", gate)
	b.send(s, "execute_command", obj{"command_id": "job", "command": command})
	if done := b.one("command_completed", "job"); !done.ok() || done.str("output") != "early\n" {
		t.Errorf("%v", done)
	}
	h.stop()
	if err := os.WriteFile(gate, []byte("\n"), 0); err != nil { // waits for the job to read
		t.Fatal(err)
	}
	outputs, err := filepath.Glob(filepath.Join(h.state(), "trees", "*", "output", "*"))
	if err != nil || len(outputs) != 1 {
		t.Fatalf("outputs %v, %v", outputs, err)
	}
	comes(t, "late output", func() bool {
		text, err := os.ReadFile(outputs[0])
		return err == nil && (string(text) == "early\nlate\nerr\n" || string(text) == "early\nerr\nlate\n")
	})
	comes(t, "end of the job", func() bool { text, _ := os.ReadFile(gate + ".status"); return string(text) == "0\n" })
	comes(t, "end of the reader", func() bool { return len(lateReaders(t, h.state())) == 0 })
}

// comes waits for what tells nobody.
func comes(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(soon); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, soon)
		}
	}
}

func lateReaders(t *testing.T, state string) (found []string) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		if cmd, err := os.ReadFile(p); err == nil && strings.Contains(string(cmd), "late-output\x00"+state) {
			found = append(found, p)
		}
	}
	return found
}
