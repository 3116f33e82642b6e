package session

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// readers are the processes that read late output into r's store.
func (r *rig) readers() (found []string) {
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		r.Fatal(err)
	}
	for _, p := range procs {
		if cmd, err := os.ReadFile(p); err == nil && bytes.Contains(cmd, []byte("late-output\x00"+r.opts.Tree.Store)) {
			found = append(found, filepath.Dir(p))
		}
	}
	return found
}

func (r *rig) eventually(what string, ok func() bool) {
	r.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			r.Fatal("not within 20 s: " + what)
		}
	}
}

// job starts, in the background, what says goes to stdout once r.release is called, and
// closes the session. It gives the command's id.
func (r *rig) job(says string) snapshot.ID {
	r.Helper()
	gate, end := r.gate("gate"), r.gate("end")
	res, _ := r.run("{ cd /; read x <" + gate + "; " + says + "; echo $? >" + gate + ".status; read x <" + end + "; } & echo early")
	r.Cleanup(func() {
		for _, p := range res.Survivors {
			if r.Failed() { // else it has ended
				_ = unix.Kill(p.PID, unix.SIGKILL)
			}
		}
	})
	if err := r.Session.Close(); err != nil {
		r.Fatal(err)
	}
	r.reopen()
	if n := r.readers(); len(n) != 1 {
		r.Fatalf("%d processes read on, want 1", len(n))
	}
	return res.Snapshot.ID
}

// gate is a FIFO beside the tree.
func (r *rig) gate(name string) string {
	path := filepath.Join(filepath.Dir(r.tree), name)
	if err := unix.Mkfifo(path, 0o600); err != nil {
		r.Fatal(err)
	}
	return path
}

// release lets the job go on.
func (r *rig) release(name string) {
	r.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(r.tree), name), []byte("\n"), 0); err != nil {
		r.Fatal(err)
	}
}

// said waits until the job has printed all, and lives.
func (r *rig) said() {
	r.Helper()
	name := filepath.Join(filepath.Dir(r.tree), "gate.status")
	r.eventually("the job goes on", func() bool { b, err := os.ReadFile(name); return err == nil && len(b) > 0 })
	if b, err := os.ReadFile(name); err != nil || string(b) != "0\n" {
		r.Fatalf("what the job prints with ended with %q, %v", b, err)
	}
}

func (r *rig) end() {
	r.Helper()
	r.release("end")
	r.eventually("no reader is left", func() bool { return len(r.readers()) == 0 })
}

// A job that keeps its streams open lives on when the session is closed; what it prints
// is added to its command's output, and nothing is left when it ends.
func TestLateOrphan(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		id := r.job("echo late; echo err >&2")
		if in, out := stdio(r.readers()[0]); in != "/dev/null" || out != "/dev/null" {
			t.Errorf("the reader has stdin %q and stdout %q", in, out)
		}
		r.release("gate")
		r.said()
		r.eventually("the output is whole", func() bool {
			b, err := os.ReadFile(r.outputFile(id))
			s := string(b)
			return err == nil && (s == "early\nlate\nerr\n" || s == "early\nerr\nlate\n")
		})
		if res, _ := r.run("true"); len(res.Survivors) > 0 || len(res.Stale) > 0 {
			t.Errorf("left behind: %v, %v", res.Survivors, res.Stale)
		}
		r.end()
	})
}

func stdio(proc string) (in, out string) {
	in, _ = os.Readlink(filepath.Join(proc, "fd/0"))
	out, _ = os.Readlink(filepath.Join(proc, "fd/1"))
	return in, out
}

// What the pipe holds when the session is closed is not lost, and much more than is
// kept neither stops the job nor fills the disk.
func TestLateOrphanMuch(t *testing.T) {
	r := newRig(t)
	id := r.job("head -c 50000000 /dev/zero")
	r.release("gate")
	r.said()
	want := int64(len("early\n") + tailBytes)
	r.eventually("the output is at its bound", func() bool { info, err := os.Stat(r.outputFile(id)); return err == nil && info.Size() == want })
	r.end()
	if info, err := os.Stat(r.outputFile(id)); err != nil || info.Size() != want {
		t.Errorf("%v, %v", info.Size(), err)
	}
}

// An output that gc has removed stays away.
func TestLateOrphanGone(t *testing.T) {
	r := newRig(t)
	id := r.job("echo late")
	if err := os.Remove(r.outputFile(id)); err != nil {
		t.Fatal(err)
	}
	r.release("gate")
	r.said()
	r.end()
	if _, err := os.Lstat(r.outputFile(id)); !os.IsNotExist(err) {
		t.Errorf("the output is back: %v", err)
	}
}

// ReadLate refuses what does not come from handOver.
func TestReadLateArguments(t *testing.T) {
	for _, args := range []string{"", "detach", "/x", "/x y", "/x 1 /y"} {
		if err := ReadLate(strings.Fields(args)); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}
