package agent

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"deployx/snapshot"
	"deployx/socketio"
)

func TestBadRequests(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{MaxPayload: 32 << 20})
	startAgent(t, b, newHost(t))
	b.registered(1)
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for _, c := range []struct {
		event string
		args  any
		field string
	}{
		{"execute_command", nil, "command"},
		{"execute_command", obj{}, "command"},
		{"execute_command", obj{"command": ""}, "command"},
		{"execute_command", obj{"command": 1}, "command"},
		{"execute_command", obj{"command": []string{"ls"}}, "command"},
		{"execute_command", obj{"command": "a\x00b"}, "command"},
		{"execute_command", obj{"command": strings.Repeat("x", maxCommand+1)}, "command"},
		{"execute_command", obj{"command": "x", "command_id": 5}, "command_id"},
		{"execute_command", obj{"command": "x", "command_id": strings.Repeat("i", maxID+1)}, "command_id"},
		{"execute_command", obj{"command": "x", "command_id": "a\nb"}, "command_id"},
		{"execute_command", obj{"command": "x", "timeout": "5"}, "timeout"},
		{"execute_command", obj{"command": "x", "timeout": -1}, "timeout"},
		{"execute_command", obj{"command": "x", "timeout": 1e300}, "timeout"},
		{"execute_command", obj{"command": "x", "create_snapshot": "false"}, "create_snapshot"},
		{"execute_command", obj{"command": "x", "env": []string{"A=b"}}, "env"},
		{"execute_command", obj{"command": "x", "env": obj{"A=B": "c"}}, "env"},
		{"execute_command", obj{"command": "x", "env": obj{"A": 1}}, "env"},
		{"execute_command", obj{"command": "x", "tree": "../x"}, "tree"},
		{"execute_command", "ls", "object"},
		{"execute_command", []string{"ls"}, "object"},
		{"execute_command", raw(`{"command":"echo good","command":"echo evil"}`), "twice"},
		{"execute_command", raw(`{"command":"x","metadata":{"a":1,"a":2}}`), "twice"},
		{"execute_command", raw(`{"COMMAND":"x"}`), "command"},
		{"execute_command", raw(`{"command":"x","metadata":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}`), "nested"},
		{"execute_command", raw(`{"command":"x","metadata":` + strings.Repeat(`{"a":`, 40) + "1" + strings.Repeat("}", 40) + `}`), "nested"},
		{"execute_command", obj{"command": "x", "metadata": strings.Repeat("y", maxRequest)}, "bytes"},
		{"execute_batch_persistent", obj{"commands": []string{}}, "commands"},
		{"execute_batch_persistent", obj{"commands": "ls"}, "commands"},
		{"execute_batch_persistent", obj{"commands": []any{"ls", 1}}, "commands"},
		{"execute_batch_persistent", obj{"commands": []any{nil}}, "commands"},
		{"rollback_command", obj{"snapshot_id": obj{}}, "snapshot_id"},
		{"rollback_batch", obj{"batch_id": []int{}}, "batch_id"},
		{"redo", obj{"count": 0}, "count"},
		{"get_snapshot_info", obj{}, "snapshot_id"},
		{"get_batch_snapshots", obj{"batch_id": nil}, "batch_id"},
		{"get_diff", obj{"snapshot_id": "x", "patch": 1}, "patch"},
		{"list_snapshots", obj{"tree": 1}, "tree"},
		{"cleanup_snapshots", obj{"older_than_hours": "all"}, "older_than_hours"},
		{"command_input", obj{"command": 1}, "command"},
		{"interrupt_signal", obj{"command_id": true}, "command_id"},
		{"start_shell_request", obj{"shell": 1}, "shell"},
	} {
		if msg := b.refused("bad_request", c.event, c.args); !strings.Contains(msg, c.field) {
			t.Errorf("%s %.100v: the message does not name %s: %s", c.event, c.args, c.field, msg)
		}
	}
	// None of it stops the agent; large is not wrong in itself.
	b.ask("execute_command", obj{"command_id": "ok", "command": "echo fine", "unknown": strings.Repeat("y", 5<<20)})
	b.one("command_completed", "ok")
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `null`, `{"command":"x","timeout":1.5,"env":{"A":"b"}}`, `{"commands":["a"]}`, `{"a":{"a":[1,{"b":null}]}}`, `[`, `{"a":1,"a":2}`, `"x"`, `{"signature":"AA==","request_id":"r","signed_at":1}`, `{"tree":"/x","snapshot_id":"\ud800"}`} {
		f.Add([]byte(s))
	}
	a := &Agent{o: Options{}.withDefaults(), id: "a"}
	key := signers{make(ed25519.PublicKey, ed25519.PublicKeySize)}
	f.Fuzz(func(t *testing.T, b []byte) {
		fs, err := decode([]json.RawMessage{b})
		if err != nil {
			if codeOf(err) != snapshot.CodeBadRequest {
				t.Fatalf("%v", err)
			}
			return
		}
		once, err := appendObject(nil, fs.raw)
		if err == nil {
			again, err := appendCanonical(nil, once)
			if err != nil || string(again) != string(once) {
				t.Fatalf("canonical form of %q is %q, %v", once, again, err)
			}
		}
		_, _ = key.verify("a", "e", fs, time.Now())
		c := a.readCommand(fs)
		_ = fs.commands("commands")
		if fs.err == nil && (c.Text == "" || len(c.ID) > maxID || strings.ContainsRune(c.Text, 0)) {
			t.Fatalf("let through: %+v", c)
		}
		if fs.err != nil && codeOf(fs.err) != snapshot.CodeBadRequest && codeOf(fs.err) != snapshot.CodeFailedToStart {
			t.Fatal(fs.err)
		}
		_ = readRollback(fs)
	})
}

func TestOnlyAllowedTrees(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t), func(o *Options) { o.AllowTrees = []string{"/srv/second"} })
	b.registered(1)
	for _, tree := range []string{"/srv/app", "/srv/second", "/srv/second/", "/srv/x/../second"} {
		if ack := b.ask("execute_command", obj{"command": "echo x", "tree": tree}); ack["ok"] != true {
			t.Errorf("%s: %v", tree, ack)
		}
	}
	for _, tree := range []string{"/", "/srv", "/srv/second/sub", "/srv/second/../third", "/etc"} {
		b.refused("unauthorized", "execute_command", obj{"command": "echo evil", "tree": tree})
		b.refused("unauthorized", "execute_batch_persistent", obj{"commands": []string{"echo evil"}, "tree": tree})
		b.refused("unauthorized", "rollback_batch", obj{"batch_id": "x", "tree": tree})
		b.refused("unauthorized", "list_snapshots", obj{"tree": tree})
		b.refused("unauthorized", "redo", obj{"tree": tree})
	}
	if a.host.count("echo evil") != 0 {
		t.Error("it ran")
	}
}

// testKey is made of a fixed seed, so that docs/protocol.md can show it.
func testKey(t testing.TB) (ed25519.PrivateKey, []byte) {
	t.Helper()
	priv := ed25519.NewKeyFromSeed([]byte("deployx protocol example seed 01"))
	der, err := x509.MarshalPKIXPublicKey(priv.Public())
	if err != nil {
		t.Fatal(err)
	}
	return priv, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

func sign(t testing.TB, priv ed25519.PrivateKey, agentID, event string, o obj) obj {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := decode([]json.RawMessage{b})
	if err != nil {
		t.Fatal(err)
	}
	m, err := signedMessage(agentID, event, fs.raw)
	if err != nil {
		t.Fatal(err)
	}
	signed := obj{"signature": base64.StdEncoding.EncodeToString(ed25519.Sign(priv, m))}
	for k, v := range o {
		signed[k] = v
	}
	return signed
}

func TestRequestsMustBeSigned(t *testing.T) {
	priv, pub := testKey(t)
	b := newBackend(t, socketio.ServerConfig{})
	h := newHost(t)
	a := startAgent(t, b, h, func(o *Options) { o.SignatureKeys = pub })
	b.registered(1)
	request := func(id string, at time.Time) obj {
		return obj{"command": "echo signed", "request_id": id, "signed_at": at.Unix(), "metadata": obj{"ü": "é\n", "a": []any{1, true, nil}}}
	}
	good := sign(t, priv, a.ID(), "execute_command", request("request-0000000001", time.Now()))
	if ack := b.ask("execute_command", good); ack["ok"] != true {
		t.Fatalf("a good one: %v", ack)
	}
	b.one("command_completed", "")
	if msg := b.refused("unauthorized", "execute_command", good); !strings.Contains(msg, "replay") {
		t.Errorf("a replay: %s", msg)
	}
	altered := sign(t, priv, a.ID(), "execute_command", request("request-0000000002", time.Now()))
	altered["command"] = "echo evil"
	b.refused("unauthorized", "execute_command", altered)
	altered = sign(t, priv, a.ID(), "execute_command", request("request-0000000003", time.Now()))
	altered["tree"] = "/etc"
	b.refused("unauthorized", "execute_command", altered)
	for what, o := range map[string]obj{
		"unsigned":         request("request-0000000004", time.Now()),
		"old":              sign(t, priv, a.ID(), "execute_command", request("request-0000000005", time.Now().Add(-6*time.Minute))),
		"of tomorrow":      sign(t, priv, a.ID(), "execute_command", request("request-0000000006", time.Now().Add(24*time.Hour))),
		"short id":         sign(t, priv, a.ID(), "execute_command", request("short", time.Now())),
		"to another agent": sign(t, priv, "agent_other", "execute_command", request("request-0000000007", time.Now())),
		"another event":    sign(t, priv, a.ID(), "execute_deployment_command", request("request-0000000008", time.Now())),
		"another key":      sign(t, ed25519.NewKeyFromSeed(make([]byte, 32)), a.ID(), "execute_command", request("request-0000000009", time.Now())),
	} {
		b.refused("unauthorized", "execute_command", o)
		t.Log(what)
	}
	for _, event := range []string{"rollback_batch", "list_snapshots", "interrupt_signal", "start_shell_request", "command_input", "get_shells"} {
		b.refused("unauthorized", event, obj{})
	}
	if h.count("echo evil") != 0 || h.count("echo signed") != 1 {
		t.Error("it ran")
	}
	// A replay over a restart.
	a.stop()
	startAgent(t, b, h, func(o *Options) { o.SignatureKeys = pub })
	b.registered(2)
	b.refused("unauthorized", "execute_command", good)
}

func TestCanonicalForm(t *testing.T) {
	for in, want := range map[string]string{
		`{ "b" : 1, "a":[ true,null , "\u0041\/\u00e9\n\u0001\"\\" ] }`: `{"a":[true,null,"A/é\n\u0001\"\\"],"b":1}`,
		`{"a":{"z":{},"b":[]}}`:            `{"a":{"b":[],"z":{}}}`,
		`{"n":-9007199254740991,"<":"&>"}`: `{"<":"&>","n":-9007199254740991}`,
	} {
		got, err := appendCanonical(nil, json.RawMessage(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{`{"n":1.5}`, `{"n":1e3}`, `{"n":-0}`, `{"n":9007199254740992}`} {
		if _, err := appendCanonical(nil, json.RawMessage(in)); codeOf(err) != snapshot.CodeBadRequest {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// The example in docs/protocol.md is this one.
func TestSignatureExampleOfTheDocs(t *testing.T) {
	priv, pub := testKey(t)
	o := obj{"command_id": "deploy-42", "command": "echo \"hé\"", "timeout": 60, "request_id": "7f3c9a52d1e84b06", "signed_at": 1767225600}
	signed := sign(t, priv, "agent_0123abcd", "execute_command", o)
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := decode([]json.RawMessage{b})
	if err != nil {
		t.Fatal(err)
	}
	m, err := signedMessage("agent_0123abcd", "execute_command", fs.raw)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"message": string(m), "signature": signed["signature"].(string), "key": strings.TrimSpace(string(pub))} {
		if !strings.Contains(string(doc), text) {
			t.Errorf("docs/protocol.md does not have the %s:\n%s", what, text)
		}
	}
	ks, err := readSigners(pub)
	if err != nil {
		t.Fatal(err)
	}
	fs.raw["signature"], _ = json.Marshal(signed["signature"])
	if id, err := ks.verify("agent_0123abcd", "execute_command", fs, time.Unix(1767225600+60, 0)); err != nil || id != "7f3c9a52d1e84b06" {
		t.Errorf("%q, %v", id, err)
	}
}

func TestSignerFiles(t *testing.T) {
	_, pub := testKey(t)
	if ks, err := readSigners(append(append([]byte{}, pub...), pub...)); err != nil || len(ks) != 2 {
		t.Errorf("two keys: %d, %v", len(ks), err)
	}
	for _, s := range []string{"", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"} {
		if _, err := readSigners([]byte(s)); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
}

func TestAuditLog(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	b.ask("execute_command", obj{"command_id": "c", "command": "exit 4", "env": obj{"PASSWORD": "hunter2"}})
	b.one("command_completed", "c")
	b.refused("bad_request", "rollback_command", obj{})
	a.stop()
	name := filepath.Join(a.dir, "audit.log")
	fi, err := os.Stat(name)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var lines []auditLine
	for s := range strings.Lines(string(text)) {
		var l auditLine
		if err := json.Unmarshal([]byte(s), &l); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		lines = append(lines, l)
	}
	if len(lines) != 3 {
		t.Fatalf("%d lines:\n%s", len(lines), text)
	}
	if l := lines[0]; l.What != "request" || l.Event != "execute_command" || l.Command != "exit 4" || l.CommandID != "c" || !l.OK || l.Connection == "" || l.Time.IsZero() {
		t.Errorf("request %+v", l)
	}
	if l := lines[1]; l.What != "result" || l.OK || *l.ExitCode != 4 || l.SnapshotID == "" || l.Tree != "/srv/app" {
		t.Errorf("result %+v", l)
	}
	journal, err := os.ReadFile(filepath.Join(a.dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	for what, s := range map[string]string{"audit log": string(text), "journal": string(journal), "log": a.log.String()} {
		if strings.Contains(s, "hunter2") {
			t.Errorf("a secret of the environment is in the %s", what)
		}
	}
}

func TestAuditLogTurnsOver(t *testing.T) {
	dir := t.TempDir()
	l, err := openAudit(dir, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		if err := l.write(auditLine{What: "request", CommandID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "audit.log*"))
	if err != nil || len(names) != auditKeep+1 {
		t.Errorf("%v, %v", names, err)
	}
}
