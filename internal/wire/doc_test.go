package wire

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"deployx/session"
	"deployx/snapshot"
)

// TestDocumented holds every field that is sent against what docs/protocol.md says of
// the event: the paragraphs or rows that have the words.
func TestDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		of      string // words that only the right places have
		payload any
	}{
		{"| `agent_register` |", Register{}},
		{"| `agent_register` |", Tree{}},
		{"`system_info`: hostname", SystemInfo{}},
		{"**Acks.**", Failure{}},
		{"| `command_started` |", Started{}},
		{"| `command_output` |", Output{}},
		{"| `command_completed` | + | `batch_command_completed` |", AgentCompleted{}},
		{"| `command_completed` |", Process{}},
		{"| `command_completed` |", snapshot.Holder{}},
		{"| `command_completed` |", snapshot.Mount{}},
		{"| `command_completed` |", snapshot.Counts{}},
		{"`deployment_command_completed` |", DeploymentOutput{}},
		{"| `batch_command_progress` |", BatchProgress{}},
		{"| `batch_execution_completed` |", AgentBatchCompleted{}},
		{"| `batch_execution_completed` |", BatchResult{}},
		{"| `rollback_completed` |", AgentRolledBack{}},
		{"| `rollback_completed` |", Kept{}},
		{"| `rollback_completed` |", session.Stale{}},
		{"| `redo_completed` |", Redone{}},
		{"| `snapshot_info_result` ·", SnapshotInfo{}},
		{"| `snapshots_list_result` |", SnapshotList{}},
		{"A snapshot in a list:", Metadata{}},
		{"| `diff_result` |", Diff{}},
	} {
		said := ""
		for of := range strings.SplitSeq(c.of, " + ") {
			said += place(t, string(b), of)
		}
		for _, f := range fields(reflect.TypeOf(c.payload)) {
			if !regexp.MustCompile(`\b` + f + `\b`).MatchString(said) {
				t.Errorf("%s: nothing of %s", c.of, f)
			}
		}
	}
}

// place is the row of a table, or the paragraph.
func place(t *testing.T, doc, of string) string {
	t.Helper()
	i := strings.Index(doc, of)
	if i < 0 {
		t.Fatalf("nothing of %s", of)
	}
	end := "\n\n"
	if of[0] == '|' || strings.HasSuffix(of, "|") {
		end = "\n"
	}
	said, _, _ := strings.Cut(doc[i:], end)
	return said
}

// fields are the names on the wire, but for those that every event has.
func fields(t reflect.Type) (names []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			names = append(names, fields(f.Type)...)
		case name == "event" && t != reflect.TypeFor[Failure](), name == "agent_id" && t != reflect.TypeFor[Register]():
		default:
			names = append(names, name)
		}
	}
	return names
}
