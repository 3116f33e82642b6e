package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deployx/snapshot"
	"deployx/socketio"
)

// crashed is the state directory of an agent that was killed: requests are
// noted, and what had happened to their commands stands in the record.
type crashed struct {
	t testing.TB
	h *host
	j *journal
	r *snapshot.Record
}

func newCrashed(t testing.TB) *crashed {
	h := newHost(t)
	j, err := openJournal(filepath.Join(h.dir, "agent"), limits{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := h.open(t.Context(), "/srv/app")
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Record()
	if err != nil {
		t.Fatal(err)
	}
	return &crashed{t, h, j, r}
}

func (c *crashed) noted(k key, v any) {
	c.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		c.t.Fatal(err)
	}
	if _, wait, err := c.j.see(k, b, false); err != nil || wait() != nil {
		c.t.Fatal(err)
	}
}

func (c *crashed) recorded(p snapshot.Snapshot) snapshot.Snapshot {
	c.t.Helper()
	p.ID, p.Kind, p.Parent, p.Started = snapshot.NewID(), snapshot.KindCommand, c.r.Head().Snapshot, time.Now()
	h := c.r.Head()
	h.Snapshot = p.ID
	if err := c.r.Commit(h, nil, p); err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *crashed) begun(p snapshot.Snapshot) snapshot.Snapshot {
	c.t.Helper()
	p.ID, p.Kind, p.Parent, p.Started = snapshot.NewID(), snapshot.KindCommand, c.r.Head().Snapshot, time.Now()
	if err := c.r.Begin(p, false); err != nil {
		c.t.Fatal(err)
	}
	return p
}

func (c *crashed) restart(b *backend) *running {
	if err := c.j.close(); err != nil {
		c.t.Fatal(err)
	}
	return startAgent(c.t, b, c.h)
}

// TestRebootLosesNotes: of a command without a note nobody says that it did not
// run, once the host has been booted anew.
func TestRebootLosesNotes(t *testing.T) {
	for _, again := range []bool{false, true} {
		c := newCrashed(t)
		c.noted(key{kindCommand, "waited"}, command{ID: "waited", Text: "echo waited", Tree: "/srv/app"})
		boot := filepath.Join(c.h.dir, "agent", "boot")
		if _, err := rebooted(filepath.Dir(boot)); err != nil {
			t.Fatal(err)
		}
		if again {
			if err := os.WriteFile(boot, []byte("another\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b := newBackend(t, socketio.ServerConfig{})
		a := c.restart(b)
		if g := b.one("command_completed", "waited"); g.yes("not_run") == again || g.str("code") != "interrupted" {
			t.Errorf("booted anew %v: %s", again, g.raw)
		}
		a.outboxEmpty()
		a.stop()
		if now, err := rebooted(filepath.Dir(boot)); err != nil || now {
			t.Errorf("the boot was not noted: %v %v", now, err)
		}
	}
}

func TestRestartReportsWhatWasCutOff(t *testing.T) {
	c := newCrashed(t)
	note := func(id string) {
		c.noted(key{kindCommand, id}, command{ID: id, Text: "echo " + id, Tree: "/srv/app"})
	}
	note("done")
	done := c.recorded(snapshot.Snapshot{CommandID: "done", Command: "echo done", ExitCode: 7, Dir: "/srv/app", Changes: snapshot.Counts{Added: 2}})
	note("cut")
	cut := c.recorded(snapshot.Snapshot{CommandID: "cut", Command: "echo cut", Unfinished: true, ExitCode: -1})
	note("ran")
	ran := c.begun(snapshot.Snapshot{CommandID: "ran", Command: "echo ran"})
	note("waited")
	b := newBackend(t, socketio.ServerConfig{})
	a := c.restart(b)
	if g := b.one("command_completed", "done"); g.str("snapshot_id") != string(done.ID) || g.num("exit_code") != 7 || g.str("code") != "" || g.m["changes"].(obj)["added"] != 2.0 {
		t.Errorf("recorded before the end: %s", g.raw)
	}
	if g := b.one("command_completed", "cut"); g.str("snapshot_id") != string(cut.ID) || g.str("code") != "interrupted" || g.yes("not_run") {
		t.Errorf("cut off and recorded: %s", g.raw)
	}
	if g := b.one("command_completed", "ran"); g.str("snapshot_id") != string(ran.ID) || g.str("code") != "interrupted" || g.yes("not_run") || g.yes("success") {
		t.Errorf("cut off while it ran: %s", g.raw)
	}
	if g := b.one("command_completed", "waited"); !g.yes("not_run") || g.str("code") != "interrupted" {
		t.Errorf("not started: %s", g.raw)
	}
	a.outboxEmpty()
	for _, id := range []string{"done", "cut", "ran", "waited"} {
		if ack := b.ask("execute_command", obj{"command_id": id, "command": "echo " + id}); ack["duplicate"] != true || a.host.count("echo "+id) != 0 {
			t.Errorf("%s was run again: %v", id, ack)
		}
	}
	a.stop()
	startAgent(t, b, c.h) // and is not reported a third time
	b.registered(2)
	if n := len(b.all(named("command_completed", "ran"))); n != 2 {
		t.Errorf("reported %d times", n)
	}
}

func TestRestartEndsABatch(t *testing.T) {
	c := newCrashed(t)
	k := key{kindBatch, "b"}
	c.noted(k, batch{ID: "b", Commands: []string{"echo 0", "echo 1", "echo 2"}, Tree: "/srv/app"})
	c.recorded(snapshot.Snapshot{CommandID: "b#0", BatchID: "b", Command: "echo 0"})
	first := &event{key: k, name: "batch_command_completed", lane: "/srv/app", payload: json.RawMessage(`{"agent_id":"x","batch_id":"b","command_index":0,"command":"echo 0","success":true,"exit_code":0,"output":"0\n"}`)}
	if wait, err := c.j.post(k, first); err != nil || wait() != nil {
		t.Fatal(err)
	}
	ran := c.begun(snapshot.Snapshot{CommandID: "b#1", BatchID: "b", Command: "echo 1", CommandIndex: 1})
	b := newBackend(t, socketio.ServerConfig{})
	a := c.restart(b)
	done := b.one("batch_execution_completed", "b")
	results := done.m["execution_results"].([]any)
	if done.num("successful_commands") != 1 || done.num("failed_commands") != 1 || len(results) != 3 || results[2].(obj)["skipped"] != true || done.str("code") != "interrupted" {
		t.Errorf("completed %s", done.raw)
	}
	one := b.wait(2, "results", named("batch_command_completed", "b"))
	if one[1].str("snapshot_id") != string(ran.ID) || one[1].str("code") != "interrupted" || one[1].num("command_index") != 1 {
		t.Errorf("the one that ran: %s", one[1].raw)
	}
	if a.host.count("echo 1")+a.host.count("echo 2") != 0 {
		t.Error("it went on")
	}
}

func TestRestartSettlesARollback(t *testing.T) {
	c := newCrashed(t)
	kept := c.recorded(snapshot.Snapshot{CommandID: "kept", Command: "echo kept"})
	gone := c.recorded(snapshot.Snapshot{CommandID: "gone", Command: "echo gone"})
	h := c.r.Head()
	h.Snapshot = kept.ID
	if err := c.r.Move(h); err != nil {
		t.Fatal(err)
	}
	for _, id := range []snapshot.ID{kept.ID, gone.ID} {
		r := rollback{ID: id, Tree: "/srv/app"}
		c.noted(r.key(), r)
	}
	c.noted(key{kindCommand, "button"}, command{ID: "button", Text: restorePrefix + string(gone.ID), Tree: "/srv/app", Legacy: true})
	b := newBackend(t, socketio.ServerConfig{})
	c.restart(b)
	if g := b.one("rollback_completed", string(gone.ID)); !g.yes("success") {
		t.Errorf("done before the end: %s", g.raw)
	}
	if g := b.one("rollback_completed", string(kept.ID)); g.yes("success") || g.str("code") != "interrupted" {
		t.Errorf("not done: %s", g.raw)
	}
	if g := b.one("deployment_command_completed", "button"); !g.yes("success") || !strings.HasPrefix(g.str("display_command"), "Rolled back") {
		t.Errorf("the button: %s", g.raw)
	}
}

func TestRestartWithATreeThatIsGone(t *testing.T) {
	c := newCrashed(t)
	c.noted(key{kindCommand, "x"}, command{ID: "x", Text: "echo x", Tree: "/missing"})
	b := newBackend(t, socketio.ServerConfig{})
	c.restart(b)
	if g := b.one("command_completed", "x"); g.yes("success") || g.str("code") != "interrupted" {
		t.Errorf("got %s", g.raw)
	}
}
