package session

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// stream is a service: a thousand times a second it appends a number and its
// checksum to three files of a directory, by a descriptor that it keeps, by path, and
// by path under a lock. It prints a line when it has begun, and ends when its input
// does; how many there were is in a fourth.
func stream(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	kept, err := os.OpenFile("fd", appending, 0o644)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		ended <- err
	}()
	fmt.Println()
	tick := time.NewTicker(time.Millisecond)
	for n := 0; ; n++ {
		select {
		case err := <-ended:
			return errors.Join(err, kept.Close(), os.WriteFile("count", []byte(strconv.Itoa(n)), 0o644))
		case <-tick.C:
		}
		if _, err := kept.WriteString(line(n)); err != nil {
			return err
		}
		for _, name := range []string{"path", "locked"} {
			if err := appendTo(name, line(n), name == "locked"); err != nil {
				return err
			}
		}
	}
}

const appending = os.O_CREATE | os.O_APPEND | os.O_WRONLY

func line(n int) string {
	return fmt.Sprintf("%d %08x\n", n, crc32.ChecksumIEEE([]byte(strconv.Itoa(n))))
}

func appendTo(name, text string, lock bool) error {
	f, err := os.OpenFile(name, appending, 0o644)
	if err != nil {
		return err
	}
	if lock {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	if err == nil {
		_, err = f.WriteString(text)
	}
	return errors.Join(err, f.Close())
}

// TestSealedStream: a service writes a stream while commands run and are undone
// and done again. No number is lost, doubled or reverted, and no command counts
// them as its own.
func TestSealedStream(t *testing.T) {
	r := newRig(t)
	r.run("mkdir -p data app; echo 0 > app/f")
	cmd := exec.Command(os.Args[0], "stream", filepath.Join(r.tree, "data"))
	cmd.Stderr = os.Stderr
	in, out := testns.Start(t, cmd)
	defer func() { unix.Kill(cmd.Process.Pid, unix.SIGKILL); cmd.Wait() }() //nolint:errcheck // it may have ended
	testns.Line(t, out)
	steps := 200 // 500, as by make soak, take a processor two minutes with -race
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
			res, _ := r.run(fmt.Sprintf("cd $DEPLOYX_TREE; echo %d >> app/f; echo %d > app/n%d", i, i, i%5))
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
		for got := range strings.Lines(string(b)) {
			if got != line(n) {
				t.Fatalf("%s: line %d is %q", name, n, got)
			}
			n++
		}
		if n != total {
			t.Errorf("%s: %d numbers of %d", name, n, total)
		}
	}
}
