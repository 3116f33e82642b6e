package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deployx/snapshot"
	"deployx/socketio"
)

func TestRegistersAndBeats(t *testing.T) {
	b, h := newBackend(t, socketio.ServerConfig{}), newHost(t)
	token := writeFile(t, filepath.Join(h.dir, "token"), "first\n", 0o600)
	a := startAgent(t, b, h, func(o *Options) { o.TokenFile = token })
	b.registered(1)
	b.wait(3, "heartbeats", named("agent_heartbeat", ""))
	r := b.one("agent_register", "")
	if r.str("agent_id") != a.ID() || r.str("version") != "test" || r.str("os") != "linux" || r.str("device_name") == "" || r.str("machine_id") == "" {
		t.Errorf("registration: %s", r.raw)
	}
	info, _ := r.m["system_info"].(obj)
	for _, k := range []string{"hostname", "os", "os_version", "os_release", "architecture", "cpu_count", "memory_total", "memory_available", "disk_total", "disk_free", "machine_id", "ip_address"} {
		if info[k] == nil || info[k] == "" || info[k] == 0.0 {
			t.Errorf("system_info has no %s: %v", k, info)
		}
	}
	if room := b.one("join_room", ""); room.str("room") != a.ID() {
		t.Errorf("joined %s", room.raw)
	}
	var auth map[string]string
	if err := json.Unmarshal(<-b.auth, &auth); err != nil || auth["token"] != "first" || auth["agent_id"] != a.ID() {
		t.Errorf("auth %v, %v", auth, err)
	}
	if head := <-b.header; head.Get("Origin") != "" {
		t.Errorf("an Origin was sent: %v", head)
	}
	// The token is read afresh, and everything is told again.
	writeFile(t, token, "second", 0o600)
	b.srv.Drop()
	b.registered(2)
	if err := json.Unmarshal(<-b.auth, &auth); err != nil || auth["token"] != "second" {
		t.Errorf("auth after a reconnect %v, %v", auth, err)
	}
	if strings.Contains(a.log.String(), "second") {
		t.Error("the token is in the log")
	}
}

func TestRegistersAgainWhenTakenForOffline(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("agents_list", []string{"x"})
	b.send("device_status_changed", obj{"agent_id": "other", "status": "offline"})
	b.send("device_status_changed", obj{"agent_id": a.ID(), "status": "online"})
	b.send("device_status_changed", obj{"agent_id": a.ID(), "status": "offline"})
	b.registered(2)
	b.send("registration_error", obj{"message": "database is down"})
	b.registered(3)
	b.wait(3, "join", named("join_room", ""))
	if n := len(b.all(named("agent_register", ""))); n != 3 {
		t.Errorf("registered %d times", n)
	}
}

func TestExecutesACommand(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	ack := b.ask("execute_command", obj{
		"command_id": "c1", "command": "echo hi modify", "metadata": obj{"who": "me"}, "cwd": "sub", "env": obj{"A": "b"}, "timeout": 7.5, "unknown": 1,
	})
	if ack["ok"] != true || ack["command_id"] != "c1" || ack["status"] != "accepted" {
		t.Errorf("ack %v", ack)
	}
	done := b.one("command_completed", "c1")
	started, out := b.one("command_started", "c1"), b.one("command_output", "c1")
	if started.str("snapshot_id") == "" || started.str("snapshot_id") != done.str("snapshot_id") || started.str("cwd") != "/srv/app" {
		t.Errorf("started %s", started.raw)
	}
	if out.str("output") != "hi modify\n" || out.str("stream") != "stdout" || out.num("seq") != 0 || out.str("agent_id") != a.ID() {
		t.Errorf("output %s", out.raw)
	}
	if !done.yes("success") || done.num("exit_code") != 0 || done.str("command") != "echo hi modify" || done.str("output") != "hi modify\n" || done.str("agent_id") != a.ID() {
		t.Errorf("completed %s", done.raw)
	}
	c := a.host.at("/srv/app").got
	if c.Dir != "/srv/app/sub" || c.Timeout != 7500*time.Millisecond || len(c.Env) != 1 || c.Env[0] != "A=b" || string(c.Metadata) != `{"who":"me"}` {
		t.Errorf("the session was asked %+v", c)
	}
	if l := a.log.String(); !strings.Contains(l, "Created snapshot "+done.str("snapshot_id")+" for command: echo hi modify") {
		t.Errorf("the log does not tell:\n%s", l)
	}
}

func TestExitStatusAndSignalAreTheResult(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_command", obj{"command_id": "c", "command": "exit 3", "create_snapshot": false})
	done := b.one("command_completed", "c")
	if done.yes("success") || done.num("exit_code") != 3 || done.str("error") == "" || done.str("snapshot_id") != "" {
		t.Errorf("completed %s", done.raw)
	}
	b.send("execute_command", obj{"command_id": "d", "command": "echo error failed fatal"})
	if done := b.one("command_completed", "d"); !done.yes("success") {
		t.Errorf("guessed from words: %s", done.raw)
	}
}

func TestEveryKindOfRequestIsAcknowledged(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.ask("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"echo 1"}})
	b.one("batch_execution_completed", "b")
	b.ask("execute_command", obj{"command_id": "c", "command": "echo 2"})
	id := b.one("command_completed", "c").str("snapshot_id")
	for _, r := range []struct {
		event string
		o     obj
	}{
		{"get_snapshot_info", obj{"snapshot_id": id}},
		{"get_batch_snapshots", obj{"batch_id": "b"}},
		{"list_snapshots", nil},
		{"get_diff", obj{"snapshot_id": id, "patch": true}},
		{"get_shells", nil},
		{"rollback_command", obj{"snapshot_id": id, "dry_run": true}},
		{"rollback_command", obj{"command_id": "c"}},
		{"redo", nil},
		{"rollback_batch", obj{"batch_id": "b", "action": "rollback"}},
		{"stop_shell_request", nil},
		{"execute_deployment_command", obj{"command_id": "d", "command": "echo", "shell": "cmd"}},
	} {
		if a := b.ask(r.event, r.o); a["ok"] != true {
			t.Errorf("%s: %v", r.event, a)
		}
	}
	b.one("deployment_command_completed", "d")
	b.refused("not_found", "interrupt_signal", obj{"command_id": "d"})
	b.refused("not_found", "command_input", obj{"command": "ls\n"})
	b.refused("unsupported", "cleanup_snapshots", obj{})
	b.refused("unsupported", "cleanup_snapshot", obj{"snapshot_id": id})
	b.refused("unsupported", "no_such_event", obj{})
	for _, name := range []string{"snapshot_info_result", "batch_snapshots_result", "snapshots_list_result", "diff_result", "shells_list", "cleanup_result", "redo_completed", "shell_stopped", "error"} {
		b.wait(1, name, named(name, ""))
	}
	info := b.one("snapshot_info_result", "").m["info"].(obj)
	for _, k := range []string{"snapshot_id", "command", "timestamp", "working_directory", "tree", "exit_code", "driver", "size_bytes", "age_seconds"} {
		if _, ok := info[k]; !ok {
			t.Errorf("snapshot info has no %s: %v", k, info)
		}
	}
	if d := b.one("diff_result", ""); d.str("patch") != "+++ b/file\n" || len(d.m["changes"].([]any)) != 1 {
		t.Errorf("diff %s", d.raw)
	}
}

func TestStopsCleanly(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t), func(o *Options) { o.Grace = 50 * time.Millisecond })
	b.registered(1)
	b.send("execute_command", obj{"command_id": "runs", "command": "wait"})
	b.one("command_started", "runs")
	b.ask("execute_command", obj{"command_id": "waits", "command": "echo never"})
	a.stop()
	runs, waits := b.one("command_completed", "runs"), b.one("command_completed", "waits")
	if !runs.yes("interrupted") || runs.str("code") != "interrupted" || runs.str("snapshot_id") == "" {
		t.Errorf("what ran: %s", runs.raw)
	}
	if !waits.yes("not_run") || waits.str("code") != "interrupted" || a.host.count("echo never") != 0 {
		t.Errorf("what waited: %s", waits.raw)
	}
	// It was reported, so it is done: never again.
	a = startAgent(t, b, a.host)
	b.registered(2)
	if ack := b.ask("execute_command", obj{"command_id": "waits", "command": "echo never"}); ack["duplicate"] != true || a.host.count("echo never") != 0 {
		t.Errorf("after the restart: %v", ack)
	}
}

func TestSecondAgentOnOneStateIsRefused(t *testing.T) {
	b, h := newBackend(t, socketio.ServerConfig{}), newHost(t)
	startAgent(t, b, h)
	_, err := New(Options{URL: b.url, State: h.dir, Open: h.open})
	if err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Fatalf("got %v", err)
	}
}

func TestCleansUpOldSnapshots(t *testing.T) {
	b, h := newBackend(t, socketio.ServerConfig{}), newHost(t)
	asked, forgot := make(chan time.Duration, 100), make(chan string, 10)
	a := startAgent(t, b, h, func(o *Options) {
		o.Retention, o.CleanupInterval = 2*time.Hour, 20*time.Millisecond
		o.Open = func(ctx context.Context, path string) (Session, error) {
			s, err := h.open(ctx, path)
			return retaining{s.(*fake), asked, forgot}, err
		}
	})
	b.registered(1)
	for range 2 {
		if d := <-asked; d != 2*time.Hour {
			t.Errorf("asked for %s", d)
		}
	}
	if ack := b.ask("cleanup_snapshots", obj{"older_than_hours": 1.5}); ack["ok"] != true || ack["removed"] != 3.0 {
		t.Errorf("ack %v", ack)
	}
	b.one("cleanup_result", "")
	for d := range asked {
		if d == 90*time.Minute {
			break
		}
	}
	if !strings.Contains(a.log.String(), "Cleaned up 3 old snapshots") {
		t.Errorf("the log does not tell:\n%s", a.log)
	}
	// One of them, found without its tree's name.
	b.ask("execute_command", obj{"command_id": "c", "command": "echo x"})
	id := b.one("command_completed", "c").str("snapshot_id")
	for _, older := range []bool{false, true} {
		if ack := b.ask("cleanup_snapshot", obj{"snapshot_id": id, "include_older": older}); ack["ok"] != true || ack["removed"] != 1.0 || ack["tree"] != "/srv/app" {
			t.Errorf("ack %v", ack)
		}
		if got := <-forgot; got != fmt.Sprint(id, older) {
			t.Errorf("asked to forget %s", got)
		}
	}
	b.refused("unknown_snapshot", "cleanup_snapshot", obj{"snapshot_id": "ff"})
	b.refused("bad_request", "cleanup_snapshot", obj{})
}

// TestCleansUpKnownTrees: those that have no session are cleaned up, but for those
// that requests may not name; one that fails does not stop the others.
func TestCleansUpKnownTrees(t *testing.T) {
	b, h := newBackend(t, socketio.ServerConfig{}), newHost(t)
	st := snapshot.NewState(h.dir)
	for _, p := range []string{"/srv/app", "/srv/barred", "/srv/broken", "/srv/busy", "/srv/known"} {
		if err := st.Add(snapshot.Tree{Path: p, Store: filepath.Join(t.TempDir(), "store")}); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(h.dir, "trees", "a-damaged.json"), "{", 0o600)
	asked := make(chan string, 1000)
	a := startAgent(t, b, h, func(o *Options) {
		o.CleanupInterval, o.AllowTrees = 20*time.Millisecond, []string{"/srv/broken", "/srv/busy", "/srv/known"}
		o.Clean = func(_ context.Context, tree snapshot.Tree, olderThan time.Duration) (int, error) {
			asked <- fmt.Sprint(tree.Path, " ", olderThan)
			switch tree.Path {
			case "/srv/broken":
				return 0, fail(snapshot.CodeNotFound, "it is gone", "")
			case "/srv/busy":
				return 0, fail(snapshot.CodeTreeBusy, "another works on it", "")
			}
			return 2, nil
		}
	})
	for range 3 {
		for _, want := range []string{"/srv/broken", "/srv/busy", "/srv/known"} {
			if got := <-asked; got != want+" 24h0m0s" {
				t.Errorf("asked for %s, want %s", got, want)
			}
		}
	}
	a.stop()
	log := a.log.String()
	for _, want := range []string{"Cleaned up 2 old snapshots\" tree=/srv/known", "Could not clean up\" error=\"it is gone\" tree=/srv/broken", "a-damaged.json"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not have %q:\n%s", want, log)
		}
	}
	if strings.Contains(log, "Could not clean up\" error=\"another works on it") {
		t.Errorf("a tree that is in use is no error:\n%s", log)
	}
}

// TestCleanUpPasses: a tree in which a command runs does not keep others from being
// cleaned up, and is when that has ended.
func TestCleanUpPasses(t *testing.T) {
	b, h := newBackend(t, socketio.ServerConfig{}), newHost(t)
	held, first := make(chan struct{}), make(chan time.Duration, 1000)
	other := make(chan time.Duration, 1000)
	a := startAgent(t, b, h, func(o *Options) {
		o.CleanupInterval, o.CleanPatience, o.Trees = 20*time.Millisecond, time.Millisecond, []string{"/srv/app", "/srv/second"}
		o.Open = func(ctx context.Context, path string) (Session, error) {
			s, err := h.open(ctx, path)
			if path == "/srv/second" {
				return retaining{fake: s.(*fake), asked: other}, err
			}
			return patient{retaining{fake: s.(*fake), asked: first}, held}, err
		}
	})
	for range 3 {
		<-other
	}
	if len(first) > 0 {
		t.Error("it did not wait")
	}
	close(held)
	for range 2 {
		<-first
	}
	a.stop()
}

// patient lets snapshots go when it may.
type patient struct {
	retaining
	may chan struct{}
}

func (s patient) Expire(ctx context.Context, olderThan time.Duration) (int, error) {
	<-s.may
	return s.retaining.Expire(ctx, olderThan)
}

func TestPlaintextIsRefused(t *testing.T) {
	for url, ok := range map[string]bool{
		"http://127.0.0.1:1": true, "ws://[::1]:1": true, "http://localhost:1": true, "https://example.org": true, "wss://10.0.0.1": true,
		"http://10.0.0.1:1": false, "ws://example.org": false, "http://localhost.example.org": false, "http://127.0.0.1.example.org": false, "https://u:p@example.org": false,
	} {
		err := Options{URL: url}.Check()
		if (err == nil) != ok {
			t.Errorf("%s: %v", url, err)
		}
	}
	if err := (Options{URL: "http://10.0.0.1", AllowPlaintext: true}).Check(); err != nil {
		t.Error(err)
	}
}

func TestTokenThatOthersCanReadIsRefused(t *testing.T) {
	name := writeFile(t, filepath.Join(t.TempDir(), "token"), "s3cret", 0o640)
	_, err := New(Options{URL: "http://127.0.0.1:1", State: t.TempDir(), TokenFile: name})
	if err == nil || strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), "chmod") {
		t.Fatalf("got %v", err)
	}
	writeFile(t, name, "", 0o600)
	if _, err := readToken(name); err == nil {
		t.Fatal("an empty token")
	}
	if _, err := readToken(name + "-none"); errors.Is(err, nil) {
		t.Fatal("no token")
	}
}
