package agent

import (
	"testing"

	"deployx/internal/wire"
	"deployx/socketio"
)

func TestBatch(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	if ack := b.ask("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"echo one", "exit 3", "echo three"}}); ack["batch_id"] != "b" {
		t.Errorf("ack %v", ack)
	}
	done := b.one("batch_execution_completed", "b")
	if done.yes("success") || done.num("total_commands") != 3 || done.num("successful_commands") != 1 || done.num("failed_commands") != 1 || done.str("error") != "exit status 3" {
		t.Errorf("completed %s", done.raw)
	}
	results := done.m["execution_results"].([]any)
	last := results[2].(obj)
	if len(results) != 3 || last["skipped"] != true || last["error"] != wire.SkippedText || last["success"] != false || last["index"] != 2.0 {
		t.Errorf("results %v", results)
	}
	one := b.wait(2, "results of commands", named("batch_command_completed", "b"))
	if len(one) != 2 || one[1].num("exit_code") != 3 || one[1].num("command_index") != 1 || one[0].str("output") != "one\n" {
		t.Errorf("commands %s %s", one[0].raw, one[1].raw)
	}
	if p := b.one("batch_command_progress", "b"); p.str("status") != "running" || p.str("command") != "echo one" {
		t.Errorf("progress %s", p.raw)
	}
	if o := b.one("command_output", "b"); o.str("batch_id") != "b" || o.num("command_index") != 0 {
		t.Errorf("output %s", o.raw)
	}
	info := b.ask("get_batch_snapshots", obj{"batch_id": "b"})["info"].(obj)
	if info["count"] != 2.0 {
		t.Errorf("info %v", info)
	}
}

func TestBatchGoesOnOrRollsBack(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	commands := []string{"echo one", "exit 3", "echo three"}
	b.send("execute_batch_persistent", obj{"batch_id": "on", "commands": commands, "stop_on_failure": false})
	if done := b.one("batch_execution_completed", "on"); done.num("successful_commands") != 2 || done.num("failed_commands") != 1 {
		t.Errorf("completed %s", done.raw)
	}
	b.send("execute_batch_persistent", obj{"batch_id": "back", "commands": commands, "rollback_on_failure": true})
	if done := b.one("batch_execution_completed", "back"); !done.yes("rolled_back") || done.yes("success") {
		t.Errorf("completed %s", done.raw)
	}
	if r := b.one("rollback_completed", "back"); !r.yes("success") || len(r.m["rolled_back"].([]any)) != 2 {
		t.Errorf("rolled back %s", r.raw)
	}
}

func TestBatchIsInterrupted(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"wait", "echo after"}, "stop_on_failure": false})
	b.one("command_started", "b")
	b.send("interrupt_signal", obj{})
	done := b.one("batch_execution_completed", "b")
	if done.str("code") != "interrupted" || a.host.count("echo after") != 0 || done.num("failed_commands") != 1 {
		t.Errorf("completed %s", done.raw)
	}
}

func TestBatchInATreeThatIsMissing(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"echo"}, "tree": "/missing/tree"})
	if done := b.one("batch_execution_completed", "b"); done.str("code") != "not_found" || done.yes("success") {
		t.Errorf("completed %s", done.raw)
	}
	b.send("execute_command", obj{"command_id": "c", "command": "echo", "tree": "/missing/tree"})
	if done := b.one("command_completed", "c"); done.str("code") != "not_found" || !done.yes("not_run") {
		t.Errorf("completed %s", done.raw)
	}
	b.refused("bad_request", "execute_command", obj{"command": "echo", "tree": "relative"})
}
