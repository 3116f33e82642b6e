// Package archtest holds the import rules of docs/design.md.
package archtest

import (
	"os/exec"
	"strings"
	"testing"
)

// forbidden imports, by package, of its code (tests may drive what they like).
var forbidden = map[string][]string{
	"deployx/snapshot":      {"deployx/overlay", "deployx/fallback", "deployx/session", "deployx/shell", "deployx/agent", "deployx/socketio"},
	"deployx/overlay":       {"deployx/fallback", "deployx/session", "deployx/shell", "deployx/agent", "deployx/socketio"},
	"deployx/fallback":      {"deployx/overlay", "deployx/session", "deployx/shell", "deployx/agent", "deployx/socketio"},
	"deployx/shell":         {"deployx/snapshot", "deployx/overlay", "deployx/fallback", "deployx/session", "deployx/agent", "deployx/socketio"},
	"deployx/socketio":      {"deployx/snapshot", "deployx/overlay", "deployx/fallback", "deployx/session", "deployx/shell", "deployx/agent"},
	"deployx/session":       {"deployx/overlay", "deployx/fallback", "deployx/agent", "deployx/socketio", "github.com/sirupsen/logrus"},
	"deployx/agent":         {"deployx/overlay", "deployx/fallback"},
	"deployx/internal/wire": {"deployx/overlay", "deployx/fallback", "deployx/agent", "deployx/socketio"},
}

// onlyLoggers may import the logger.
var onlyLoggers = map[string]bool{"deployx/agent": true, "deployx/cmd/deployx": true}

// TestImports: snapshot imports no driver, the drivers do not know each other,
// shell knows nothing of snapshots, socketio nothing of ours, and only cmd and
// agent log.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}}: {{join .Imports " "}}`, "deployx/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		pkg, imports, _ := strings.Cut(strings.TrimSpace(line), ": ")
		seen[pkg] = true
		for _, i := range strings.Fields(imports) {
			for _, bad := range forbidden[pkg] {
				if i == bad || strings.HasPrefix(i, bad+"/") {
					t.Errorf("%s imports %s", pkg, i)
				}
			}
			if strings.HasSuffix(i, "/logrus") && !onlyLoggers[pkg] {
				t.Errorf("%s logs", pkg)
			}
		}
	}
	for pkg := range forbidden {
		if !seen[pkg] {
			t.Errorf("the rule for %s is about nothing", pkg)
		}
	}
}
