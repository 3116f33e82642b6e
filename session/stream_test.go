package session

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// streamer appends numbers to three files of its directory about a thousand
// times a second: by a descriptor that it keeps, by path, and by path under a
// lock. It prints a line when it has begun, and ends when its input does.
const streamer = `
cd "$1"; exec 3>>fd; n=0; echo
while read -t 0.001; [ $? -gt 128 ]; do
	echo "$n $((n * 7919 % 10007))" >&3
	echo "$n $((n * 7919 % 10007))" >>path
	( flock 4; echo "$n $((n * 7919 % 10007))" >&4 ) 4>>locked
	n=$((n + 1))
done
echo $n >count`

// TestSealedStream: a service writes a stream while commands run and are undone
// and done again. No number is lost, doubled or reverted, and no command counts
// them as its own.
func TestSealedStream(t *testing.T) {
	r := newRig(t)
	r.run("mkdir -p data app; echo 0 > app/f")
	cmd := exec.Command("bash", "-c", streamer, "bash", filepath.Join(r.tree, "data"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Kill(cmd.Process.Pid, unix.SIGKILL); cmd.Wait() }() //nolint:errcheck // it may have ended
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	steps := 12
	if os.Getenv("DEPLOYX_SOAK") != "" {
		steps = 500
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var done []snapshot.ID
	redo := 0
	for i := range steps {
		switch n := rnd.IntN(4); {
		case n == 0 && len(done) > 0:
			back := 1 + rnd.IntN(min(3, len(done)))
			at := len(done) - back
			if _, err := r.Rollback(context.Background(), Target{ID: done[at]}, RollbackOptions{}); err != nil {
				t.Fatal(i, err)
			}
			done, redo = done[:at], redo+1
		case n == 1 && redo > 0:
			u, err := r.Redo(context.Background(), 1, RollbackOptions{})
			if err != nil {
				t.Fatal(i, err)
			}
			for j := len(u.Dropped) - 1; j >= 0; j-- {
				if u.Dropped[j].Kind == snapshot.KindCommand {
					done = append(done, u.Dropped[j].ID)
				}
			}
			redo--
		default:
			res, _ := r.run(fmt.Sprintf("cd $DEPLOYX_TREE; echo %d >> app/f; echo %d > app/n%d; sleep 0.05", i, i, i%5))
			if got := res.Snapshot.Changes.Total(); got != 2 {
				t.Errorf("step %d: the command counts %d changes, want 2", i, got)
			}
			done, redo = append(done, res.Snapshot.ID), 0
		}
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	checkStreams(t, filepath.Join(r.tree, "data"))
}

func checkStreams(t *testing.T, dir string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "count"))
	if err != nil {
		t.Fatal(err)
	}
	total, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || total < 10 {
		t.Fatal(total, err)
	}
	t.Logf("%d numbers in each stream", total)
	for _, name := range []string{"fd", "path", "locked"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(b)) {
			if want := fmt.Sprintf("%d %d\n", n, n*7919%10007); line != want {
				t.Fatalf("%s: line %d is %q", name, n, line)
			}
			n++
		}
		if n != total {
			t.Errorf("%s: %d numbers of %d", name, n, total)
		}
	}
}
