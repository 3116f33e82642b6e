package snapshottest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"

	"deployx/snapshot"
)

// A holder is a process that holds the tree open in some way.
type holder struct {
	name   string
	script string // run by bash with the tree's path in $1; prints a line when it holds
}

// holders: each either does not matter to the driver, or is named by the error
// and by Holders; the tree is then as it was, and is swapped when it has gone.
func (r *rig) holders() {
	for _, h := range []holder{
		{"working directory", `cd "$1"; echo; read`},
		{"directory below", `cd "$1/d/s"; echo; read`},
		{"file open for writing", `exec 3>>"$1/d/f"; echo; read`},
		{"file open for reading", `exec 3<"$1/d/f"; echo; read`},
	} {
		r.do(appendTo("d/g", h.name))
		r.hold(h)
	}
	r.sweep()
}

func (r *rig) hold(h holder) {
	r.t.Helper()
	end := r.start(h.script)
	pid := end.Process.Pid
	layers := r.seal()
	before := r.picture(r.tree.root)
	v := snapshot.View{Layers: layers, Open: snapshot.NewLayerID()}
	_, err := r.d.Show(r.ctx(), v)
	if err == nil {
		end.stop(r.t)
		r.shows(v, before)
		return
	}
	var e *snapshot.Error
	isPID := func(p snapshot.Holder) bool { return p.PID == pid }
	if snapshot.CodeOf(err) != snapshot.CodeTreeBusy || !errors.As(err, &e) || !slices.ContainsFunc(e.Holders, isPID) {
		r.t.Fatalf("%s by pid %d: the error does not say so: %v", h.name, pid, err)
	}
	named, err := r.d.Holders(r.ctx())
	r.must("Holders", err)
	if !slices.ContainsFunc(named, isPID) {
		r.t.Fatalf("%s by pid %d: Holders names only %+v", h.name, pid, named)
	}
	r.wantShown(r.view.Open)
	r.same("after a Show that was refused", before)
	end.stop(r.t)
	r.do(appendTo("d/g", "more"))
	r.push()
}

type child struct {
	*exec.Cmd
	in io.Closer
}

// start runs a bash script until its standard input ends. It returns when the
// script has printed a line.
func (r *rig) start(script string) child {
	r.t.Helper()
	cmd := exec.CommandContext(r.ctx(), "bash", "-c", script, "bash", r.tree.root)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	in, err := cmd.StdinPipe()
	r.must("pipe", err)
	out, err := cmd.StdoutPipe()
	r.must("pipe", err)
	r.must("start bash", cmd.Start())
	c := child{cmd, in}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		c.stop(r.t)
		r.t.Fatalf("wait for %q: %v", script, err)
	}
	return c
}

// stop ends the script and waits for it.
func (c child) stop(t *testing.T) {
	t.Helper()
	if err := c.in.Close(); err != nil {
		t.Error(err)
	}
	var exit *exec.ExitError
	if err := c.Wait(); err != nil && !errors.As(err, &exit) {
		t.Error(err)
	}
}

// lookups: a process that opens the tree's files by path all the time, while
// layers come and go, never misses one, unless the driver cannot help it.
func (r *rig) lookups() {
	r.do(write("counter", "0\n"))
	r.push()
	reader := r.start(`
		echo
		while ! read -t 0; do
			read -r n <"$1/counter" || { echo "missed" >&2; exit 7; }
			[[ $n =~ ^[0-9]+$ && -e $1/d/f ]] || { echo "read \"$n\"" >&2; exit 8; }
		done`)
	for i := range r.o.shorter(30) {
		r.do(replace("counter", fmt.Sprintf("%d\n", i)))
		r.push()
	}
	reader.stop(r.t)
	if code := reader.ProcessState.ExitCode(); code != 0 && !r.o.Gap {
		r.t.Errorf("a reader by path saw a tree that never was: exit status %d", code)
	}
	r.sweep()
}
