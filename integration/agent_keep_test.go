package integration

import (
	"os"
	"path/filepath"
	"testing"
)

// TestAgentKeepsUploads: a bad deploy, ordered by a backend, is rolled back over
// the wire after a user has uploaded something. The upload survives, and the
// redo of the rollback too; where it cannot, the backend is told the paths.
func TestAgentKeepsUploads(t *testing.T) {
	for _, driver := range []string{"auto", "copy"} {
		t.Run(driver, func(t *testing.T) {
			b, h := startBoard(t, "python"), newHost(t)
			h.run(b.url(), "--driver", driver)
			b.registered(1)
			b.ask("execute_command", obj{"command_id": "setup", "command": "mkdir uploads; echo 1 > app.js"})
			b.one("command_completed", "setup")
			b.ask("execute_command", obj{"command_id": "deploy", "command": "echo 2 > app.js; touch broken; chmod 700 uploads"})
			bad := b.one("command_completed", "deploy").str("snapshot_id")
			write := func(name, text string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(h.tree(), name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want := func(app, upload string) {
				t.Helper()
				if a, u := h.read("app.js"), h.read("uploads/cat.png"); a != app || u != upload {
					t.Errorf("app.js is %q, the upload %q; want %q and %q", a, u, app, upload)
				}
			}
			write("uploads/cat.png", "cat")

			b.ask("rollback_command", obj{"snapshot_id": bad, "drift": "refuse"})
			if r := b.one("rollback_completed", bad); r.ok() || r.str("code") != "drift_conflict" {
				t.Errorf("refuse: %v", r)
			}
			want("2\n", "cat")
			a := b.ask("rollback_command", obj{"snapshot_id": bad})
			kept, _ := a.Payload["kept"].(obj)
			if a.Payload["success"] != true || a.Payload["verified"] != true || kept["total"] != 1.0 || kept["paths"].([]any)[0] != "uploads/cat.png" {
				t.Errorf("rollback: %v", a)
			}
			want("1\n", "cat")
			if _, err := os.Lstat(filepath.Join(h.tree(), "broken")); err == nil {
				t.Error("what the deploy made is still there")
			}
			if fi, err := os.Stat(filepath.Join(h.tree(), "uploads")); err != nil || fi.Mode().Perm() != 0o755 {
				t.Errorf("the mode of uploads was not put back: %v %v", fi, err)
			}

			write("uploads/cat.png", "another cat")
			if a := b.ask("redo", obj{}); a.Payload["success"] != true {
				t.Errorf("redo: %v", a)
			}
			want("2\n", "another cat")

			write("app.js", "hotfix")
			a = b.ask("rollback_command", obj{"snapshot_id": bad})
			if e, _ := a.Payload["error"].(obj); a.Payload["ok"] != false || e["code"] != "drift_conflict" || e["paths"].([]any)[0] != "app.js" {
				t.Errorf("a conflict: %v", a)
			}
			want("hotfix", "another cat")
		})
	}
}
