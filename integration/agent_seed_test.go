package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAgentDoesWhatTheExamplesDo: the backend's side of the first example, on
// both real servers and both transports.
func TestAgentDoesWhatTheExamplesDo(t *testing.T) {
	for _, kind := range kinds() {
		for _, transport := range []string{"websocket", "polling"} {
			t.Run(kind+"/"+transport, func(t *testing.T) {
				b, h := startBoard(t, kind, "TOKEN=s3cret"), newHost(t)
				token := filepath.Join(h.dir, "token")
				if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
					t.Fatal(err)
				}
				h.run(b.url(), "--token-file", token, "--transport", transport)
				b.registered(1)
				seed(t, b, h)
				h.stop()
				if strings.Contains(h.said(), "s3cret") {
					t.Error("the token is in the log")
				}
			})
		}
	}
}

func seed(t *testing.T, b *board, h *host) {
	commands := []string{"mkdir backend", "cd backend/", "mkdir logs", "echo hello > logs/first", "cat logs/first; pwd"}
	if a := b.ask("execute_batch_persistent", obj{"batch_id": "b", "commands": commands}); a.Payload["ok"] != true {
		t.Fatalf("refused: %v", a)
	}
	done := b.one("batch_execution_completed", "b")
	if !done.ok() || done.Payload["successful_commands"] != 5.0 {
		t.Fatalf("batch: %v", done)
	}
	if n := len(b.find(about("batch_command_completed", "b"))); n != 5 {
		t.Errorf("%d commands were reported", n)
	}
	if out := b.output("b#4"); out != "hello\n"+h.tree()+"/backend\n" {
		t.Errorf("output: %q", out)
	}
	b.ask("execute_command", obj{"command_id": "c", "command": "rm -r logs; echo gone >&2"})
	c := b.one("command_completed", "c")
	if !c.ok() || h.read("backend/logs/first") == "hello\n" {
		t.Fatalf("command: %v", c)
	}
	if o := b.one("command_output", "c"); o.str("stream") != "stderr" || b.output("c") != "gone\n" {
		t.Errorf("output: %v", o)
	}
	b.ask("rollback_command", obj{"snapshot_id": c.str("snapshot_id")})
	if r := b.one("rollback_completed", c.str("snapshot_id")); !r.ok() || r.Payload["verified"] != true {
		t.Fatalf("rollback: %v", r)
	}
	if got := h.read("backend/logs/first"); got != "hello\n" {
		t.Errorf("after the rollback of one: %q", got)
	}
	b.ask("rollback_batch", obj{"batch_id": "b"})
	if r := b.one("rollback_completed", "b"); !r.ok() {
		t.Fatalf("rollback: %v", r)
	}
	names, err := os.ReadDir(h.tree())
	if err != nil || len(names) != 1 || h.read("base") != "base\n" {
		t.Errorf("after the rollback of all: %v, %v", names, err)
	}
	b.ask("redo", obj{})
	if got := h.read("backend/logs/first"); got != "hello\n" {
		t.Errorf("after the redo: %q", got)
	}
	if a := b.ask("list_snapshots", obj{}); len(a.Payload["snapshots"].([]any)) != 6 {
		t.Errorf("list: %v", a)
	}
	cleanUpOne(t, b, h, c.str("snapshot_id"))
}

// cleanUpOne: a snapshot goes by itself or not at all, and what the commands did
// stays.
func cleanUpOne(t *testing.T, b *board, h *host, undone string) {
	ids := map[string]string{}
	for _, g := range b.find(about("batch_command_completed", "b")) {
		ids[g.str("command_id")] = g.str("snapshot_id")
	}
	for _, c := range []struct {
		id      string
		removed any
	}{{ids["b#3"], nil}, {ids["b#0"], 1.0}, {ids["b#0"], 0.0}, {undone, 1.0}} {
		a := b.ask("cleanup_snapshot", obj{"snapshot_id": c.id})
		if (a.Payload["ok"] == true) != (c.removed != nil) || c.removed != nil && a.Payload["removed"] != c.removed {
			t.Errorf("clean up %s: %v, want %v", c.id, a, c.removed)
		}
	}
	a := b.ask("rollback_command", obj{"snapshot_id": ids["b#3"]})
	if a.Payload["ok"] != true || h.read("backend/logs/first") == "hello\n" {
		t.Errorf("one that was not cleaned up: %v", a)
	}
	if fi, err := os.Stat(filepath.Join(h.tree(), "backend", "logs")); err != nil || !fi.IsDir() {
		t.Errorf("what the others did: %v", err)
	}
}

// TestAgentLegacy is the generation before, on a backend that acks nothing.
func TestAgentLegacy(t *testing.T) {
	b, h := startBoard(t, "node", "SILENT=1"), newHost(t)
	h.run(b.url())
	b.registered(1)
	b.send("execute_deployment_command", obj{"command_id": "d", "command": "echo changed > base; cat base", "shell": "cmd"})
	d := b.one("deployment_command_completed", "d")
	if !d.ok() || d.Payload["is_destructive"] != true || d.str("backup_id") == "" || d.str("output") != "" {
		t.Errorf("completed: %v", d)
	}
	if o := b.one("deployment_command_output", "d"); o.str("output") != "changed\n" {
		t.Errorf("output: %v", o)
	}
	b.send("execute_deployment_command", obj{"command_id": "r", "command": "RESTORE_BACKUP:" + d.str("backup_id"), "shell": "cmd"})
	if r := b.one("deployment_command_completed", "r"); !r.ok() || !strings.HasPrefix(r.str("display_command"), "Rolled back echo changed") {
		t.Errorf("restored: %v", r)
	}
	if got := h.read("base"); got != "base\n" {
		t.Errorf("after the restore: %q", got)
	}
	b.send("start_shell_request", obj{"shell": "cmd"})
	b.one("shell_started", "")
	b.send("command_input", obj{"command": "echo in$((40+2))\n"})
	b.wait(1, func(g got) bool { return g.Event == "command_output" && strings.Contains(g.str("output"), "in42") })
	b.send("stop_shell_request", obj{})
	b.one("shell_stopped", "")
}

// TestAgentInput: standard input, a terminal, an interrupt, and another shell,
// with a real shell below.
func TestAgentInput(t *testing.T) {
	b, h := startBoard(t, "node"), newHost(t)
	h.run(b.url())
	b.registered(1)
	b.ask("execute_command", obj{"command_id": "in", "command": "cat; echo end", "stdin": true})
	b.one("command_started", "in")
	b.ask("command_input", obj{"command_id": "in", "data": "typed ", "eof": true})
	if c := b.one("command_completed", "in"); c.str("output") != "typed end\n" {
		t.Errorf("input: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "unread", "command": "echo not read", "stdin": true})
	if c := b.one("command_completed", "unread"); !c.ok() {
		t.Errorf("input that is not read: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "tty", "command": "tty; read -r x; echo got $x", "tty": true})
	b.one("command_started", "tty")
	b.ask("command_input", obj{"command_id": "tty", "data": "line\n"})
	if c := b.one("command_completed", "tty"); !strings.Contains(c.str("output"), "/dev/pts/") || !strings.Contains(c.str("output"), "got line") {
		t.Errorf("terminal: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "sh", "command": "echo it's $0", "shell": "sh"})
	if c := b.one("command_completed", "sh"); c.ok() {
		t.Errorf("an open quote: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "sh2", "command": "echo $0", "shell": "sh"})
	if c := b.one("command_completed", "sh2"); c.str("output") != "sh\n" {
		t.Errorf("another shell: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "long", "command": "echo begun; sleep 1000"})
	b.one("command_output", "long")
	b.ask("interrupt_signal", obj{})
	if c := b.one("command_completed", "long"); c.Payload["interrupted"] != true || c.Payload["exit_code"] != 130.0 {
		t.Errorf("interrupted: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "slow", "command": "sleep 1000", "timeout": 0.2})
	if c := b.one("command_completed", "slow"); c.Payload["exit_code"] != 124.0 || c.str("code") != "timeout" {
		t.Errorf("timed out: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "d", "command": "echo x > new; mkdir dir"})
	id := b.one("command_completed", "d").str("snapshot_id")
	a := b.ask("get_diff", obj{"snapshot_id": id, "patch": true})
	if !strings.Contains(a.str("patch"), "+x") || len(a.Payload["changes"].([]any)) < 2 {
		t.Errorf("diff: %v", a)
	}
	for i := range 3 { // each tree has its own queue and shell
		dir := filepath.Join(h.dir, fmt.Sprint("tree", i))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		b.ask("execute_command", obj{"command_id": dir, "command": "touch made; pwd", "tree": dir})
		if c := b.one("command_completed", dir); c.str("output") != dir+"\n" {
			t.Errorf("in %s: %v", dir, c)
		}
	}
}
