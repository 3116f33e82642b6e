package session

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"deployx/snapshot"
)

// A command in another shell has the session's environment and directory, and
// leaves no context behind; the record has it as it was given.
func TestRunInAnotherShell(t *testing.T) { onBoth(t, runInAnotherShell) }

func runInAnotherShell(t *testing.T, r *rig) {
	r.run("mkdir sub; cd sub; export A=1; B=2")
	for _, name := range []string{"sh", "dash", "busybox", "bash"} {
		var out bytes.Buffer
		const text = `printf %s "it's $A$B in ${PWD##*/} by $0"; cd /; export A=3`
		res, err := r.Run(context.Background(), Command{Text: text, Shell: name, Stdout: &out, Stderr: &out})
		want := "it's 1 in sub by " + name
		if name == "busybox" {
			want = "it's 1 in sub by sh"
		}
		if err != nil || out.String() != want || res.Snapshot.Command != text || res.Dir != filepath.Join(r.tree, "sub") {
			t.Errorf("%s: %v, %q (want %q), recorded %q in %s", name, err, &out, want, res.Snapshot.Command, res.Dir)
		}
	}
	if _, out := r.run("echo $A$B; pwd"); out != "12\n"+r.tree+"/sub\n" {
		t.Errorf("the session's shell now has %q", out)
	}
}

// A command that its caller refuses at the last moment does not run and is
// recorded as such, and the next one does.
func TestStartedRefuses(t *testing.T) { onBoth(t, startedRefuses) }

func startedRefuses(t *testing.T, r *rig) {
	no := errors.New("not now")
	_, err := r.Run(context.Background(), Command{Text: "touch f", Started: func(snapshot.Snapshot) error { return no }})
	if !errors.Is(err, no) || snapshot.CodeOf(err) != snapshot.CodeFailedToStart {
		t.Errorf("Run returned %v", err)
	}
	if _, err := os.Lstat(filepath.Join(r.tree, "f")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it ran: %v", err)
	}
	top, err := r.rec.Snapshot(r.rec.Head().Snapshot)
	if err != nil || !top.Unfinished || top.Command != "touch f" || top.Changes != (snapshot.Counts{}) {
		t.Errorf("recorded %+v, %v", top, err)
	}
	if _, ok, err := r.rec.Running(); ok || err != nil {
		t.Errorf("it is noted as running still: %v", err)
	}
	res, _ := r.run("touch g")
	r.rollback(res.Snapshot.ID)
	r.rollback(top.ID)
}
