package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"deployx/integration/backends"
)

// count is how often a command was run: each appends to a file outside the
// tree, which no rollback touches.
func (h *host) counting(i int) string {
	return fmt.Sprintf("echo %d >> %s/runs; echo out %d", i, h.dir, i)
}

// ranOnce checks that each of n commands was run once, in order.
func (h *host) ranOnce(n int) {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.dir, "runs"))
	if err != nil {
		h.t.Fatal(err)
	}
	lines := strings.Fields(string(b))
	for i, l := range lines {
		if l != fmt.Sprint(i) {
			h.t.Fatalf("run %d was command %s: %v", i, l, lines)
		}
	}
	if len(lines) != n {
		h.t.Errorf("%d of %d commands were run", len(lines), n)
	}
}

func each(t *testing.T, f func(t *testing.T, kind string)) {
	for _, kind := range kinds() {
		t.Run(kind, func(t *testing.T) { f(t, kind) })
	}
}

// TestAgentServerKilledDuringBatch: nothing is lost, nothing is run twice.
func TestAgentServerKilledDuringBatch(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		b, h := startBoard(t, kind), newHost(t)
		h.run(b.url())
		b.registered(1)
		const n = 60
		var commands []string
		for i := range n {
			commands = append(commands, h.counting(i)+"; sleep 0.02")
		}
		b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": commands})
		for i := range 3 {
			b.wait(i*10+1, about("batch_command_completed", "b"))
			b.kill()
			b.start()
			b.registered(i + 2)
		}
		done := b.one("batch_execution_completed", "b")
		if !done.ok() || done.Payload["successful_commands"] != float64(n) {
			t.Errorf("batch: %v", done)
		}
		results := b.results("batch_command_completed", "command_id")
		if len(results) != n {
			t.Errorf("%d of %d results came", len(results), n)
		}
		h.ranOnce(n)
		// What the killed server had not yet printed is lost with it; the rest
		// stands in the results.
		for i := range n {
			id := fmt.Sprint("b#", i)
			if out := results[id].str("output"); out != fmt.Sprintf("out %d\n", i) {
				t.Errorf("output of %s: %q", id, out)
			}
		}
	})
}

// TestAgentCutUnderLoad cuts the connection every 300 ms for 10 s, while
// commands come and print.
func TestAgentCutUnderLoad(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		b, h := startBoard(t, kind), newHost(t)
		proxy := backends.NewProxy(t, b.addr())
		h.run(proxy.URL())
		b.registered(1)
		cut := make(chan struct{})
		go func() {
			defer close(cut)
			proxy.CutEvery(300*time.Millisecond, 33)
		}()
		n := 0
		for running := true; running; n++ {
			select {
			case <-cut:
				running = false
			default:
			}
			id := fmt.Sprint("c", n)
			// The request itself may be lost: it is sent until it is acked,
			// under the same id, as a backend must.
			for done := false; !done; {
				b.send("execute_command", obj{"command_id": id, "command": h.counting(n) + "; seq 2000"})
				done = b.soon(about("command_completed", id), 250*time.Millisecond)
			}
		}
		results := b.results("command_completed", "command_id")
		if len(results) != n {
			t.Errorf("%d of %d results came", len(results), n)
		}
		h.ranOnce(n)
		want := ""
		for i := 1; i <= 2000; i++ {
			want += fmt.Sprintln(i)
		}
		for i := range n {
			id := fmt.Sprint("c", i)
			if out := b.output(id); out != fmt.Sprintf("out %d\n", i)+want {
				t.Errorf("output of %s has %d bytes", id, len(out))
			}
		}
		t.Logf("%d commands under %d cuts", n, 33)
	})
}

// soon waits a little for an event that is wanted.
func (b *board) soon(want func(got) bool, d time.Duration) bool {
	return b.events.Within(d, func() bool { return len(b.find(want)) > 0 })
}

// TestAgentFrozenServer: a server that stands still for longer than the
// heartbeat allows is left, and found again.
func TestAgentFrozenServer(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		b, h := startBoard(t, kind, "PING_INTERVAL=300", "PING_TIMEOUT=300"), newHost(t)
		h.run(b.url())
		b.registered(1)
		var commands []string
		for i := range 30 {
			commands = append(commands, h.counting(i)+"; sleep 0.1")
		}
		b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": commands})
		b.one("batch_command_completed", "b")
		if err := b.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second) // that is what frozen means
		if err := b.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if done := b.one("batch_execution_completed", "b"); !done.ok() {
			t.Errorf("batch: %v", done)
		}
		if n := len(b.results("batch_command_completed", "command_id")); n != 30 {
			t.Errorf("%d results came", n)
		}
		h.ranOnce(30)
	})
}

// TestAgentIsRefused: 20 refusals, an answer that is not JSON, a wrong token;
// then all is well.
func TestAgentIsRefused(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		b, h := startBoard(t, kind, "TOKEN=good"), newHost(t)
		proxy := backends.NewProxy(t, b.addr())
		token := filepath.Join(h.dir, "token")
		write := func(s string) {
			t.Helper()
			if err := os.WriteFile(token, []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("bad")
		proxy.Refuse(20, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
		h.run(proxy.URL(), "--token-file", token)
		until := func(what string, f func() bool) {
			t.Helper()
			for end := time.Now().Add(soon); !f(); time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("not within %v: %s", soon, what)
				}
			}
		}
		until("20 refusals", func() bool { return proxy.Refused() == 20 })
		proxy.Refuse(3, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 12\r\nConnection: close\r\n\r\n<html>hello!")
		until("answers that are not JSON", func() bool { return proxy.Refused() == 3 })
		time.Sleep(500 * time.Millisecond) // some tries with the bad token
		write("good")
		b.registered(1)
		b.ask("execute_command", obj{"command_id": "c", "command": "echo fine"})
		if c := b.one("command_completed", "c"); !c.ok() {
			t.Errorf("command: %v", c)
		}
	})
}

// TestAgentKilled: the agent dies while a command runs, and comes back. The
// command is reported as interrupted, with its snapshot, and not run again;
// what it did can be rolled back.
func TestAgentKilled(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		b, h := startBoard(t, kind), newHost(t)
		h.run(b.url())
		b.registered(1)
		b.ask("execute_command", obj{"command_id": "before", "command": h.counting(0)})
		b.one("command_completed", "before")
		b.ask("execute_command", obj{"command_id": "cut", "command": h.counting(1) + "; echo half > base; exec sleep 5"})
		b.ask("execute_command", obj{"command_id": "queued", "command": h.counting(9)})
		b.one("command_output", "cut")
		for h.read("base") != "half\n" {
			time.Sleep(5 * time.Millisecond)
		}
		h.kill()
		h.run(b.url(), "--on-pinned", "stop") // what it left running holds the tree
		b.registered(2)
		cut := b.one("command_completed", "cut")
		if cut.ok() || cut.str("code") != "interrupted" || cut.str("snapshot_id") == "" {
			t.Errorf("cut off: %v", cut)
		}
		queued := b.one("command_completed", "queued")
		if queued.Payload["not_run"] != true || queued.str("code") != "interrupted" {
			t.Errorf("queued: %v", queued)
		}
		for _, id := range []string{"before", "cut", "queued"} {
			if a := b.ask("execute_command", obj{"command_id": id, "command": h.counting(9)}); a.Payload["duplicate"] != true {
				t.Errorf("%s was accepted again: %v", id, a)
			}
		}
		h.ranOnce(2)
		b.ask("execute_command", obj{"command_id": "after", "command": "cat base"})
		if out := b.one("command_completed", "after").str("output"); out != "half\n" {
			t.Errorf("what it had done: %q", out)
		}
		a := b.ask("rollback_command", obj{"snapshot_id": cut.str("snapshot_id")})
		if h.read("base") != "base\n" {
			t.Errorf("after the rollback: %q, %v", h.read("base"), a)
		}
	})
}

// TestAgentIsRestarted: SIGTERM while a batch runs; results are delivered
// before or after.
func TestAgentIsRestarted(t *testing.T) {
	b, h := startBoard(t, "node"), newHost(t)
	h.run(b.url(), "--grace", "200ms")
	b.registered(1)
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{h.counting(0), "sleep 1000", h.counting(1)}})
	b.wait(1, func(g got) bool { return g.Event == "command_started" && g.Payload["command_index"] == 1.0 })
	h.stop()
	done := b.one("batch_execution_completed", "b")
	if done.str("code") != "interrupted" || done.Payload["failed_commands"] != 1.0 {
		t.Errorf("batch: %v", done)
	}
	h.run(b.url())
	b.registered(2)
	if a := b.ask("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{h.counting(0)}}); a.Payload["duplicate"] != true {
		t.Errorf("after the restart: %v", a)
	}
	h.ranOnce(1)
}

// TestAgentOddMessages: binary, large, many.
func TestAgentOddMessages(t *testing.T) {
	each(t, func(t *testing.T, kind string) {
		b, h := startBoard(t, kind), newHost(t)
		h.run(b.url())
		b.registered(1)
		if a := b.ask("_binary", nil); a.Payload["ok"] != false || !strings.Contains(fmt.Sprint(a), "bad_request") {
			t.Errorf("binary: %v", a)
		}
		big := strings.Repeat("x", 1<<20)
		if a := b.ask("execute_command", obj{"command_id": "big", "command": "echo big", "ignored": big + big + big}); a.Payload["ok"] != true {
			t.Errorf("3 MiB to the agent: %v", a)
		}
		b.one("command_completed", "big")
		if a := b.ask("execute_command", obj{"command_id": "long", "command": big + "x"}); a.Payload["ok"] != false {
			t.Errorf("a command of more than 1 MiB: %v", a)
		}
		// A completion whose output is all control characters is six times as
		// long in JSON; it fits all the same.
		b.ask("execute_command", obj{"command_id": "ctl", "command": `head -c 3000000 /dev/zero | tr '\0' '\1'`})
		if c := b.one("command_completed", "ctl"); !c.ok() || c.Payload["truncated"] != true {
			t.Errorf("control characters: %.300v", c)
		}
		if out := b.output("ctl"); len(out) != 3000000 {
			t.Errorf("%d control characters came", len(out))
		}
		if n := len(b.find(about("_disconnect", ""))); n != 0 {
			t.Errorf("%d disconnects", n)
		}
		const n = 10_000
		b.ask("execute_command", obj{"command_id": "many", "command": fmt.Sprintf("for ((i=0;i<%d;i++)); do echo $i; done", n)})
		b.one("command_completed", "many")
		var want strings.Builder
		for i := range n {
			fmt.Fprintln(&want, i)
		}
		if out := b.output("many"); out != want.String() {
			t.Errorf("many small ones: %d bytes", len(out))
		}
	})
}
