package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"deployx/socketio"
)

// TestManyAgents has a thousand agents in this process connect to one server,
// register, and do one command each. DEPLOYX_TEST_AGENTS changes the number.
func TestManyAgents(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	n := 1000
	if s := os.Getenv("DEPLOYX_TEST_AGENTS"); s != "" {
		n, _ = strconv.Atoi(s)
	}
	var registered, completed, output atomic.Int64
	all := make(chan struct{})
	srv := socketio.NewServer(socketio.ServerConfig{})
	ns := srv.Of("/")
	ns.On("agent_register", func(s *socketio.Socket, e *socketio.Event) {
		var r struct {
			AgentID string `json:"agent_id"`
		}
		if json.Unmarshal(e.Arg(0), &r) != nil || r.AgentID == "" {
			t.Errorf("registered %s", e.Arg(0))
		}
		registered.Add(1)
		if err := s.Emit(context.Background(), "execute_command", obj{"command_id": "of-" + r.AgentID, "command": "echo " + r.AgentID}); err != nil {
			t.Error(err)
		}
	})
	var done sync.Map
	ns.On("command_output", func(*socketio.Socket, *socketio.Event) { output.Add(1) })
	ns.On("command_completed", func(_ *socketio.Socket, e *socketio.Event) {
		var c struct {
			AgentID   string `json:"agent_id"`
			CommandID string `json:"command_id"`
			Output    string `json:"output"`
		}
		if json.Unmarshal(e.Arg(0), &c) != nil || c.CommandID != "of-"+c.AgentID || c.Output != c.AgentID+"\n" {
			t.Errorf("completed %s", e.Arg(0))
		}
		_ = e.Ack(context.Background())
		if _, twice := done.LoadOrStore(c.CommandID, true); !twice && completed.Add(1) == int64(n) {
			close(all)
		}
	})
	h := httptest.NewServer(srv)
	defer h.Close()
	defer srv.Close() //nolint:errcheck // always nil
	before := memory()
	start := time.Now()
	hosts, stop := manyAgents(t, n, h.URL)
	defer stop()
	select {
	case <-all:
	case <-time.After(3 * time.Minute):
		t.Fatalf("%d registered, %d of %d completed", registered.Load(), completed.Load(), n)
	}
	t.Logf("%d agents registered and did a command each in %s; %d KiB an agent and connection, both sides",
		n, time.Since(start).Round(time.Millisecond), (memory()-before)/uint64(n)>>10)
	for i, h := range hosts {
		if c := h.count("echo " + fmt.Sprint("agent_", i)); c != 1 {
			t.Errorf("agent %d ran it %d times", i, c)
		}
	}
	if output.Load() != int64(n) || registered.Load() != int64(n) {
		t.Errorf("%d outputs, %d registrations", output.Load(), registered.Load())
	}
}

func manyAgents(t *testing.T, n int, url string) (hosts []*host, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range n {
		host := newHost(t)
		host.lean = true
		hosts = append(hosts, host)
		a, err := New(Options{URL: url, State: host.dir, Open: host.open, Trees: []string{"/srv/app"}, AgentID: fmt.Sprint("agent_", i), FlushTimeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if err := a.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	return hosts, func() { cancel(); wg.Wait() }
}

// memory is what is in use, stacks too.
func memory() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
