package agent

import (
	"fmt"
	"testing"
	"time"

	"deployx/socketio"
)

func TestDuplicateIsNotRunAgain(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_command", obj{"command_id": "r", "command": "wait"})
	b.one("command_started", "r")
	if ack := b.ask("execute_command", obj{"command_id": "r", "command": "wait"}); ack["status"] != "running" || ack["duplicate"] != true {
		t.Errorf("while it runs: %v", ack)
	}
	b.ask("interrupt_signal", obj{"command_id": "r"})
	b.one("command_completed", "r")
	req := obj{"command_id": "c", "command": "echo once"}
	b.send("execute_command", req)
	b.send("execute_command", req)
	first := b.one("command_completed", "c")
	a.outboxEmpty()
	if ack := b.ask("execute_command", req); ack["status"] != "completed" {
		t.Errorf("after it ran: %v", ack)
	}
	list := b.wait(2, "result sent again", named("command_completed", "c"))
	if string(list[len(list)-1].raw) != string(first.raw) || a.host.count("echo once") != 1 {
		t.Errorf("ran %d times; sent\n%s\n%s", a.host.count("echo once"), first.raw, list[1].raw)
	}
	batch := obj{"batch_id": "b", "commands": []string{"echo b1", "echo b2"}}
	b.send("execute_batch_persistent", batch)
	b.one("batch_execution_completed", "b")
	a.outboxEmpty()
	b.ask("execute_batch_persistent", batch)
	b.wait(2, "batch sent again", named("batch_execution_completed", "b"))
	if n := len(b.all(named("batch_command_completed", "b"))); n != 4 || a.host.count("echo b1") != 1 {
		t.Errorf("%d command results; ran %d times", n, a.host.count("echo b1"))
	}
	// The same over a restart.
	a.stop()
	a = startAgent(t, b, a.host)
	b.registered(2)
	b.ask("execute_command", req)
	b.ask("execute_batch_persistent", batch)
	b.wait(3, "batch sent again", named("batch_execution_completed", "b"))
	if a.host.count("echo once") != 1 || a.host.count("echo b1") != 1 {
		t.Error("it ran again after a restart")
	}
}

// outboxEmpty waits until everything is delivered.
func (r *running) outboxEmpty() {
	r.t.Helper()
	timer := time.NewTimer(soon)
	defer timer.Stop()
	for {
		r.outbox.mu.Lock()
		n := 0
		for _, l := range r.outbox.lanes {
			n += len(l)
		}
		wake := r.outbox.wake
		r.outbox.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-wake:
		case <-timer.C:
			r.t.Fatalf("%d events stay in the outbox", n)
		}
	}
}

func TestResultsOutliveTheConnection(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	const n = 50
	var commands []string
	for i := range n {
		commands = append(commands, fmt.Sprintf("echo %d", i))
	}
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": commands})
	for i := range 5 {
		b.wait(i*5+1, "results", named("batch_command_completed", "b"))
		b.srv.Drop()
	}
	b.one("batch_execution_completed", "b")
	a.outboxEmpty()
	seen := map[float64]bool{}
	last := -1.0
	for _, g := range b.all(named("batch_command_completed", "b")) {
		i := g.num("command_index")
		if i > last+1 {
			t.Errorf("%v came after %v", i, last)
		}
		seen[i], last = true, max(last, i)
	}
	if len(seen) != n {
		t.Errorf("%d of %d results came", len(seen), n)
	}
	for i := range n {
		if c := a.host.count(commands[i]); c != 1 {
			t.Errorf("%q ran %d times", commands[i], c)
		}
	}
}

func TestResultsOutliveTheAgent(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t), func(o *Options) { o.FlushTimeout, o.Grace = 10*time.Millisecond, 10*time.Millisecond })
	b.registered(1)
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"wait", "echo after"}})
	b.one("command_started", "b#0")
	thaw := b.freeze() // nothing is acked from here on
	b.send("interrupt_signal", obj{"batch_id": "b"})
	a.stop()
	thaw()
	b.srv.Drop()
	before := len(b.all(named("batch_execution_completed", "b")))
	a = startAgent(t, b, a.host)
	b.wait(before+1, "result after the restart", named("batch_execution_completed", "b"))
	done := b.wait(1, "completion", named("batch_execution_completed", "b"))
	r := done[len(done)-1]
	if r.yes("success") || r.str("code") != "interrupted" || r.num("failed_commands") != 1 || a.host.count("echo after") != 0 {
		t.Errorf("got %s", r.raw)
	}
	a.outboxEmpty()
}

// A backend without a callback never acks: three tries, and nothing waits.
func TestBackendThatNeverAcks(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	b.silent.Store(true)
	a := startAgent(t, b, newHost(t), unheard)
	b.registered(1)
	const n = 40
	start := time.Now()
	for i := range n {
		b.send("execute_command", obj{"command_id": fmt.Sprint("c", i), "command": "echo x"})
	}
	b.send("execute_deployment_command", obj{"command_id": "legacy", "command": "echo y"})
	b.one("command_completed", fmt.Sprint("c", n-1))
	b.one("deployment_command_completed", "legacy")
	if d := time.Since(start); d > n*quick().Patience { // each waits for maxTries times as long
		t.Errorf("what followed was held up for %s", d)
	}
	a.outboxEmpty()
	for i := range n {
		if got := len(b.all(named("command_completed", fmt.Sprint("c", i)))); got != maxTries {
			t.Errorf("c%d was sent %d times", i, got)
		}
	}
	if got := len(b.all(named("deployment_command_completed", "legacy"))); got != 1 {
		t.Errorf("the legacy completion was sent %d times", got)
	}
}

func TestUnknownEventHoldsNothingUp(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("agents_list", obj{"agents": []int{1}})
	b.send("command_completed", obj{"command_id": "of another agent"})
	b.send("execute_command", obj{"command_id": "c", "command": "echo x"})
	b.one("command_completed", "c")
	if errs := b.all(named("error", "")); len(errs) != 0 {
		t.Errorf("answered by %s", errs[0].raw)
	}
}

func TestQueueIsBoundedAndTreesAreParallel(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_command", obj{"command_id": "first", "command": "wait"})
	b.one("command_started", "first")
	for i := range maxQueue {
		b.ask("execute_command", obj{"command_id": fmt.Sprint("q", i), "command": "echo q"})
	}
	b.refused("busy_queue", "execute_command", obj{"command_id": "over", "command": "echo q"})
	b.refused("busy_queue", "rollback_command", obj{"snapshot_id": "0"})
	// Round the queue, and in another tree.
	if ack := b.ask("list_snapshots", nil); ack["ok"] != true {
		t.Errorf("list: %v", ack)
	}
	b.ask("execute_command", obj{"command_id": "other", "command": "echo o", "tree": "/srv/other"})
	b.one("command_completed", "other")
	if ack := b.ask("interrupt_signal", obj{"command_id": "q7"}); ack["ok"] != true {
		t.Errorf("interrupt of one that waits: %v", ack)
	}
	if q := b.one("command_completed", "q7"); !q.yes("not_run") || q.str("code") != "interrupted" {
		t.Errorf("interrupted while it waited: %s", q.raw)
	}
	b.send("command_input", obj{"command": "\u0003"})
	b.one("command_completed", fmt.Sprint("q", maxQueue-1))
	if n := a.host.count("echo q"); n != maxQueue-1 {
		t.Errorf("%d of the queue ran", n)
	}
	// What was refused may come again.
	b.ask("execute_command", obj{"command_id": "over", "command": "echo q"})
	b.wait(2, "completion", named("command_completed", "over"))
}

func TestJournalIsCompacted(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	h := newHost(t)
	small := func(o *Options) {
		o.journal = limits{keepBytes: 4 << 10, keepIDs: 60, grow: 16 << 10, nonceAge: time.Hour}
	}
	a := startAgent(t, b, h, small)
	b.registered(1)
	const n = 150
	for i := range n {
		b.ask("execute_command", obj{"command_id": fmt.Sprint("c", i), "command": "echo some output to fill the journal with"})
		b.one("command_completed", fmt.Sprint("c", i))
	}
	a.outboxEmpty()
	a.stop()
	if s := a.journal.size; s > 64<<10 {
		t.Errorf("the journal has %d bytes", s)
	}
	if k := len(a.journal.ids); k > 120 {
		t.Errorf("%d ids are kept", k)
	}
	startAgent(t, b, h, small)
	b.registered(2)
	if ack := b.ask("execute_command", obj{"command_id": fmt.Sprint("c", n-1), "command": "echo again"}); ack["duplicate"] != true {
		t.Errorf("the newest: %v", ack)
	}
	b.refused("expired", "execute_command", obj{"command_id": fmt.Sprint("c", n-50), "command": "echo again"})
	if h.count("echo again") != 0 {
		t.Error("it ran again")
	}
}
