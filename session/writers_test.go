package session

import (
	"os"
	"os/exec"
	"testing"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// TestWriters: which paths are a command's, by who was seen to change them.
func TestWriters(t *testing.T) {
	const other, ours, pid, idle = 50_000, 50_123, 77, 100_001
	w := writers{tag: ours, shell: pid, by: snapshot.Writers{
		"mine": {ours}, "theirs": {other}, "both": {other, ours}, "idle": {idle}, "shell": {-pid}, "earlier": {-78},
		"ended": {0}, "ended-and-theirs": {0, other},
		"made": {ours}, "service": {other}, "dressed/.": {ours}, "./.": {ours},
		"dir/mine": {ours}, "elsewhere/theirs": {other},
	}}
	only := w.only()
	for path, want := range map[string]bool{
		"mine": true, "theirs": false, "both": true, "idle": true, "shell": true, "earlier": false,
		"ended": true, "ended-and-theirs": false,
		"made/below": true, "made/far/below": true, "service/below": false,
		"dressed": true, "dressed/below": false, // that its attributes were changed says nothing of what is in it
		"dir": true, "dir/other": false, "elsewhere": false,
		"nobody": false, ".": true,
	} {
		if got := only(path); got != want {
			t.Errorf("%s: the command's: %v", path, got)
		}
	}
}

// shortLived starts a process for each file that it writes: by the time that anybody
// looks it has ended. It prints a line when it has begun.
const shortLived = `
cd "$1"; n=0; echo
while read -t 0.0001; [ $? -gt 128 ]; do (echo $n >f$((n % 300))); (mkdir -p g$((n % 20)); echo >g$((n % 20))/f); n=$((n + 1)); done`

// TestSealedShortLived: what a service's processes write that live for a moment
// only is no command's.
func TestSealedShortLived(t *testing.T) {
	const first = "pid:[4026531836]" // PROC_PID_INIT_INO, linux/proc_ns.h
	if ns, err := os.Readlink("/proc/self/ns/pid"); err != nil || ns != first {
		t.Skipf("SKIPPED, NOT TESTED: outside the first pid namespace the kernel does not tell who started whom (%s, %v)", ns, err)
	}
	r := newRig(t)
	r.run("mkdir data app; chmod 755 data")
	cmd := exec.Command("bash", "-c", shortLived, "bash", r.tree+"/data")
	in, out := testns.Start(t, cmd)
	defer cmd.Wait() //nolint:errcheck // it ends with its input
	defer in.Close() //nolint:errcheck // a pipe
	testns.Line(t, out)
	for range 10 {
		res, _ := r.run("cd $DEPLOYX_TREE; echo x >> app/f")
		if got := res.Snapshot.Changes.Total(); got != 1 {
			t.Errorf("the command counts %d changes, want 1: %+v", got, res.Snapshot.Changes)
		}
		r.rollback(res.Snapshot.ID)
	}
}
