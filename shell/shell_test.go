package shell

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// TestMain also plays the owner that TestOwnerKilled kills.
func TestMain(m *testing.M) {
	if os.Getenv("SHELL_TEST_OWNER") != "" {
		owner()
	}
	goleak.VerifyTestMain(m)
}

func owner() {
	s, err := Start(context.Background(), Options{})
	if err != nil {
		panic(err)
	}
	for _, text := range []string{"sleep 1000 & echo $!", "sleep 1000 & echo $! $$; sh -c 'echo $$; sleep 1000; sleep 1000'; sleep 1000"} {
		_, err = s.Run(context.Background(), Command{Text: text, Stdout: os.Stdout})
	}
	panic(fmt.Sprint("not killed: ", err, s.Close(), <-make(chan int)))
}

const patience = 20 * time.Second // for a machine that does much else

var programs = []string{"bash", "dash", "busybox"}

func each(t *testing.T, f func(t *testing.T, program string)) {
	for _, p := range programs {
		t.Run(p, func(t *testing.T) {
			if _, err := which(p); err != nil {
				t.Skip("not installed: " + p)
			}
			f(t, p)
		})
	}
}

// start gives a shell whose Close must leave no descriptor, process or cgroup.
func start(t testing.TB, o Options) *Shell {
	t.Helper()
	fds := openFiles(t)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if p := s.current(); p.image != image(p.pid) {
		t.Errorf("shell taken for %q, is %q: its copies would be taken for programs", p.image, image(p.pid))
	}
	t.Cleanup(func() {
		pid := s.PID()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if pid != 0 && alive(pid) {
			t.Errorf("shell %d lives on", pid)
		}
		if s.group.path != "" {
			if _, err := os.Stat(s.group.path); err == nil {
				t.Errorf("cgroup left: %s", s.group.path)
			}
		}
		if after := openFiles(t); len(after) > len(fds) {
			t.Errorf("descriptors left:\n%s\nbefore:\n%s", strings.Join(after, "\n"), strings.Join(fds, "\n"))
		}
	})
	return s
}

// openFiles lists the process's descriptors but those of the runtime.
func openFiles(t testing.TB) []string {
	t.Helper()
	links, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	var open []string
	for _, l := range links {
		to, err := os.Readlink(l)
		if err == nil && !strings.Contains(to, "anon_inode:[event") && !strings.HasSuffix(to, "/fd") {
			open = append(open, l+" "+to)
		}
	}
	return open
}

func alive(pid int) bool { return !stat(pid).zombie() }

// waitGone waits for a process of anyone's to end.
func waitGone(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // gone
	}
	defer unix.Close(fd)
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(patience); ; {
		n, err := unix.Poll(fds, int(time.Until(end).Milliseconds()))
		if n == 1 {
			return
		}
		if err != unix.EINTR {
			t.Fatalf("process %d does not end", pid)
		}
	}
}

// run runs text and fails the test if that cannot be done.
func run(t testing.TB, s *Shell, text string) (out, errs string, r Result) {
	t.Helper()
	return runCommand(t, s, Command{Text: text})
}

func runCommand(t testing.TB, s *Shell, c Command) (out, errs string, r Result) {
	t.Helper()
	var o, e bytes.Buffer
	if c.Stdout == nil {
		c.Stdout = &o
	}
	c.Stderr = &e
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	r, err := s.Run(ctx, c)
	if err != nil {
		t.Fatalf("%.80q: %v", c.Text, err)
	}
	if ctx.Err() != nil {
		t.Fatalf("%.80q does not end", c.Text)
	}
	return o.String(), e.String(), r
}

// says fails unless text prints want and nothing on stderr.
func says(t testing.TB, s *Shell, text, want string) Result {
	t.Helper()
	out, errs, r := run(t, s, text)
	if out != want || errs != "" {
		t.Errorf("%.80q prints %.200q, %.200q; want %.200q", text, out, errs, want)
	}
	return r
}

// trigger calls f once, when the first output comes.
type trigger struct {
	io.Writer
	f func()
}

func (w *trigger) Write(p []byte) (int, error) {
	if w.f != nil {
		w.f()
		w.f = nil
	}
	if w.Writer == nil {
		return len(p), nil
	}
	return w.Writer.Write(p)
}

func number(t testing.TB, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Fatal(err)
	}
	return n
}
