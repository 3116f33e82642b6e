package agent

import (
	"strings"
	"testing"

	"deployx/socketio"
)

func TestLegacyDeployment(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_deployment_command", obj{"command_id": "d", "command": `out 200000 "q"`, "shell": "cmd"})
	done := b.one("deployment_command_completed", "d")
	a.outboxEmpty()
	var out strings.Builder
	events := b.all(named("deployment_command_output", "d"))
	for _, g := range events {
		out.WriteString(g.str("output"))
	}
	if out.Len() != 200000 {
		t.Errorf("%d bytes were streamed", out.Len())
	}
	if o, ok := done.m["output"]; !ok || o != "" || !done.yes("success") || done.m["error"] != "" {
		t.Errorf("completed %.500s", done.raw)
	}
	if done.str("snapshot_id") == "" || done.str("backup_id") != done.str("snapshot_id") || !done.yes("backup_created") || done.yes("is_destructive") {
		t.Errorf("restore fields: %.500s", done.raw)
	}
	if !strings.Contains(done.str("warning"), "cmd") {
		t.Errorf("no warning about the shell: %.500s", done.raw)
	}
	// One completion, nothing after it, and none of the other generation.
	all := b.all(func(g got) bool { return g.str("command_id") == "d" })
	if last := all[len(all)-1]; last.name != "deployment_command_completed" || len(b.all(named("deployment_command_completed", "d"))) != 1 {
		t.Errorf("the last event is %s", last.name)
	}
	if n := len(b.all(named("command_output", "d"))) + len(b.all(named("command_completed", "d"))); n != 0 {
		t.Errorf("%d events of the other generation", n)
	}
}

func TestLegacyNothingAfterTheCompletionWhateverIsCut(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_deployment_command", obj{"command_id": "d", "command": `out 12000000 "q"`}) // more than what cuts lose on the way
	for i := range 3 {
		b.wait(i*5+2, "output", named("deployment_command_output", "d"))
		b.srv.Drop()
		b.registered(i + 2)
	}
	b.one("deployment_command_completed", "d")
	b.srv.Drop()
	b.registered(5)
	a.outboxEmpty()
	completed := false
	for _, g := range b.all(func(g got) bool { return g.str("command_id") == "d" }) {
		if g.name == "deployment_command_completed" {
			completed = true
		} else if completed {
			t.Fatalf("%s came after the completion", g.name)
		}
	}
}

func TestLegacyGroupExecution(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_deployment_command", obj{"command_id": "d", "command": "echo all of it", "group_execution": true, "execution_id": 17})
	done := b.one("deployment_command_completed", "d")
	a.outboxEmpty()
	if done.str("output") != "all of it\n" || done.num("execution_id") != 17 || !done.yes("group_execution") {
		t.Errorf("completed %s", done.raw)
	}
	if n := len(b.all(named("deployment_command_output", "d"))); n != 0 {
		t.Errorf("%d pieces were streamed", n)
	}
}

func TestLegacyRestoreButton(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_deployment_command", obj{"command_id": "d", "command": "modify things"})
	done := b.one("deployment_command_completed", "d")
	if !done.yes("is_destructive") {
		t.Errorf("completed %s", done.raw)
	}
	b.send("execute_deployment_command", obj{"command_id": "r", "command": "RESTORE_BACKUP:" + done.str("backup_id"), "shell": "cmd"})
	r := b.one("deployment_command_completed", "r")
	if !r.yes("success") || r.str("display_command") != "Rolled back modify things" || r.str("output") != "" {
		t.Errorf("restored %s", r.raw)
	}
	if a.host.count("RESTORE_BACKUP:"+done.str("backup_id")) != 0 {
		t.Error("it was run as a command")
	}
	b.send("execute_deployment_command", obj{"command_id": "r2", "command": "RESTORE_BACKUP:" + done.str("backup_id")})
	if r := b.one("deployment_command_completed", "r2"); r.yes("success") || r.str("code") != "unknown_snapshot" {
		t.Errorf("a second time: %s", r.raw)
	}
	b.send("execute_deployment_command", obj{"command_id": "r3", "command": "RESTORE_BACKUP:../../etc/passwd"})
	if r := b.one("deployment_command_completed", "r3"); r.yes("success") || r.str("code") != "unknown_snapshot" {
		t.Errorf("a path: %s", r.raw)
	}
}

func TestShellNames(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	for i, s := range []any{"cmd", "powershell", "", nil, "bash"} {
		id := string(rune('a' + i))
		b.send("execute_command", obj{"command_id": id, "command": "echo x", "shell": s})
		if done := b.one("command_completed", id); !done.yes("success") || (done.str("warning") != "") != (i < 2) {
			t.Errorf("shell %v: %s", s, done.raw)
		}
	}
	b.send("execute_command", obj{"command_id": "sh", "command": "echo it's", "shell": "sh"})
	b.one("command_completed", "sh")
	if got := a.host.at("/srv/app").got; got.Shell != "sh" || got.Text != "echo it's" {
		t.Errorf("in another shell: %q in %q", got.Text, got.Shell)
	}
	b.send("execute_command", obj{"command_id": "dash", "command": "echo x", "shell": "dash"})
	if done := b.one("command_completed", "dash"); done.yes("success") || done.str("code") != "command_failed_to_start" || !done.yes("not_run") {
		t.Errorf("a shell that is not installed: %s", done.raw)
	}
}

func TestLegacyRollbackEvents(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"echo 1", "echo 2"}})
	b.one("batch_execution_completed", "b")
	b.send("rollback_batch", obj{"batch_id": "b"})
	done := b.one("rollback_completed", "b")
	if !done.yes("success") || !done.yes("verified") || len(done.m["rolled_back"].([]any)) != 2 {
		t.Errorf("completed %s", done.raw)
	}
	if r := b.one("batch_rollback_result", "b"); !r.yes("success") || r.str("message") == "" {
		t.Errorf("result %s", r.raw)
	}
	if s := b.wait(2, "status", named("batch_rollback_status", "b")); s[0].str("status") != "in_progress" || s[1].str("status") != "completed" {
		t.Errorf("status %s %s", s[0].raw, s[1].raw)
	}
	b.send("execute_command", obj{"command_id": "c", "command": "echo 3"})
	id := b.one("command_completed", "c").str("snapshot_id")
	b.send("rollback_command", obj{"command_id": "c"}) // what later backends send
	if done := b.one("rollback_completed", id); !done.yes("success") || done.str("command_id") != "c" {
		t.Errorf("by command: %s", done.raw)
	}
	b.one("rollback_result", id)
}

func TestRollbackAskedTwiceIsAnsweredTwice(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_command", obj{"command_id": "c", "command": "echo 3"})
	id := b.one("command_completed", "c").str("snapshot_id")
	b.ask("rollback_command", obj{"snapshot_id": id})
	a.outboxEmpty()
	if ack := b.ask("rollback_command", obj{"snapshot_id": id}); ack["ok"] != true || ack["duplicate"] != true {
		t.Errorf("a second time: %v", ack)
	}
	list := b.wait(2, "result again", named("rollback_completed", id))
	if string(list[0].raw) != string(list[1].raw) {
		t.Errorf("not the same: %s %s", list[0].raw, list[1].raw)
	}
	// After a redo it is a new rollback.
	b.ask("redo", obj{})
	if ack := b.ask("rollback_command", obj{"snapshot_id": id}); ack["ok"] != true || ack["duplicate"] == true {
		t.Errorf("after a redo: %v", ack)
	}
}

func TestRollbackRefusals(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.refused("bad_request", "rollback_command", obj{})
	b.refused("bad_request", "rollback_batch", obj{"batch_id": ""})
	b.refused("bad_request", "rollback_command", obj{"snapshot_id": "a", "action": "destroy"})
	b.refused("unknown_snapshot", "rollback_command", obj{"snapshot_id": "01a2-none"})
	b.refused("unknown_snapshot", "rollback_command", obj{"snapshot_id": "../../../etc"})
	b.refused("unknown_snapshot", "rollback_command", obj{"command_id": "none"})
	b.refused("unknown_batch", "rollback_batch", obj{"batch_id": "none"})
	b.send("execute_command", obj{"command_id": "c", "command": "drift"})
	id := b.one("command_completed", "c").str("snapshot_id")
	b.refused("drift_conflict", "rollback_command", obj{"snapshot_id": id})
	done := b.one("rollback_completed", id)
	if done.yes("success") || done.str("code") != "drift_conflict" || len(done.m["paths"].([]any)) != 1 {
		t.Errorf("completed %s", done.raw)
	}
	if ack := b.ask("rollback_command", obj{"snapshot_id": id, "dry_run": true, "drift": "drop"}); ack["dry_run"] != true {
		t.Errorf("dry run: %v", ack)
	}
	if ack := b.ask("rollback_command", obj{"snapshot_id": id, "drift": "drop"}); ack["ok"] != true {
		t.Errorf("drop: %v", ack)
	}
}
