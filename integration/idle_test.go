package integration

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"deployx/socketio"
)

// idleFor is how long nothing may wake up. It lies between two heartbeats.
const idleFor = 5 * time.Second

// wakeUps is how often the threads of a process, and of those below it, have
// been woken after they went to sleep of their own will: proc_pid_status(5),
// voluntary_ctxt_switches. Unlike a tracer it disturbs nobody.
func wakeUps(t *testing.T, pid int) (n int) {
	t.Helper()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(tasks) == 0 {
		t.Fatalf("process %d is gone: %v", pid, err)
	}
	for _, task := range tasks {
		b, err := os.ReadFile(task + "/status")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), "\nvoluntary_ctxt_switches:")
		line, _, _ := strings.Cut(rest, "\n")
		switches, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("%s: %v", task, err)
		}
		n += switches
		children, _ := os.ReadFile(task + "/children") //nolint:errcheck // gone: none
		for child := range strings.FieldsSeq(string(children)) {
			c, err := strconv.Atoi(child)
			if err != nil {
				t.Fatal(err)
			}
			n += wakeUps(t, c)
		}
	}
	return n
}

// sleeps is the least of some counts: what wakes it by itself does so in each.
func sleeps(t *testing.T, pid int) int {
	t.Helper()
	least := sleepsOnce(t, pid)
	for tries := 1; least > 0 && tries < 3; tries++ {
		least = min(least, sleepsOnce(t, pid))
	}
	return least
}

// sleepsOnce waits until a process has come to rest, and counts its wake-ups from
// then on.
func sleepsOnce(t *testing.T, pid int) int {
	t.Helper()
	for end, last := time.Now().Add(soon), -1; ; {
		now := wakeUps(t, pid)
		if now == last {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it never comes to rest")
		}
		last = now
		time.Sleep(500 * time.Millisecond) //nolint:forbidigo // rest is what is waited for
	}
	before := wakeUps(t, pid)
	time.Sleep(idleFor) //nolint:forbidigo // idleness is what is tested
	return wakeUps(t, pid) - before
}

// TestIdleShell: a shell that nobody types at sleeps: it, its agentless session
// and the bash below it.
func TestIdleShell(t *testing.T) {
	h := newHost(t)
	c := exec.Command(h.binary, "shell", "--tree", h.tree())
	c.Env = append(os.Environ(), "DEPLOYX_STATE="+h.state(), "TERM=xterm")
	tty, err := pty.Start(c)
	if err != nil {
		t.Fatal(err)
	}
	defer tty.Close() //nolint:errcheck // a terminal
	wait := shows(tty)
	wait("$ ")
	if _, err := tty.WriteString("echo done > new; echo finish\"\"ed\n"); err != nil {
		t.Fatal(err)
	}
	wait("finished")
	wait("$ ")
	if n := sleeps(t, c.Process.Pid); n != 0 {
		t.Errorf("an idle shell woke up %d times in %s", n, idleFor)
	}
	if _, err := tty.WriteString("exit\n"); err != nil {
		t.Fatal(err)
	}
	wait("")
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// shows reads a terminal; the function it returns waits until a text has been
// shown, or with "" until there is nothing more.
func shows(tty *os.File) func(text string) {
	lines := make(chan string, 1000)
	go func() {
		defer close(lines)
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			if err != nil {
				return
			}
			lines <- string(buf[:n])
		}
	}()
	seen := ""
	return func(text string) {
		for text == "" || !strings.Contains(seen, text) {
			more, ok := <-lines
			if !ok {
				return
			}
			seen += more
		}
		_, seen, _ = strings.Cut(seen, text)
	}
}

// TestIdleAgent: an agent that has nothing to do sleeps from one heartbeat to
// the next.
func TestIdleAgent(t *testing.T) {
	beats, completed := make(chan bool, 100), make(chan bool, 1)
	srv := socketio.NewServer(socketio.ServerConfig{PingInterval: time.Hour})
	n := srv.Of("/")
	n.On("agent_register", func(s *socketio.Socket, _ *socketio.Event) {
		_ = s.Emit(context.Background(), "registration_success", obj{})
		_ = s.Emit(context.Background(), "execute_command", obj{"command_id": "one", "command": "echo new > new"})
	})
	n.On("command_completed", func(_ *socketio.Socket, e *socketio.Event) {
		_ = e.Ack(context.Background())
		completed <- true
	})
	n.On("agent_heartbeat", func(*socketio.Socket, *socketio.Event) { beats <- true })
	web := httptest.NewServer(srv)
	defer web.Close()
	defer srv.Close() //nolint:errcheck // a server of a test
	h := newHost(t)
	h.run(web.URL, "--log-level", "warn")
	<-completed
	for len(beats) > 0 {
		<-beats
	}
	<-beats
	if n := sleeps(t, h.cmd.Process.Pid); n != 0 {
		t.Errorf("an idle agent woke up %d times in %s", n, idleFor)
	}
	if len(beats) > 0 {
		t.Error("a heartbeat came in between: nothing was tested")
	}
}
