package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/coder/websocket"

	"deployx/socketio"
)

// counter is our server role; it counts output and hands completions on.
type counter struct {
	url       string
	sockets   chan *socketio.Socket
	completed chan string // command ids
	bytes     int
	next      int
	bad       bool
}

func newCounter(b *testing.B) *counter {
	b.Helper()
	c := &counter{sockets: make(chan *socketio.Socket, 10), completed: make(chan string, 10)}
	srv := socketio.NewServer(socketio.ServerConfig{})
	n := srv.Of("/")
	n.On("agent_register", func(s *socketio.Socket, _ *socketio.Event) { c.sockets <- s })
	n.On("command_output", func(_ *socketio.Socket, e *socketio.Event) {
		n, seq := outputOf(e.Arg(0))
		c.bad = c.bad || seq != c.next
		c.bytes, c.next = c.bytes+n, seq+1
		_ = e.Ack(context.Background())
	})
	n.On("command_completed", func(_ *socketio.Socket, e *socketio.Event) {
		var o struct {
			ID string `json:"command_id"`
			OK bool   `json:"success"`
		}
		c.bad = c.bad || json.Unmarshal(e.Arg(0), &o) != nil || !o.OK
		_ = e.Ack(context.Background())
		c.completed <- o.ID
	})
	h := httptest.NewServer(srv)
	c.url = h.URL
	b.Cleanup(func() { _ = srv.Close(); h.Close() })
	return c
}

// outputOf is the length of a command_output's text, of which only newlines are
// escaped, and its seq. encoding/json would take more time here than all else.
func outputOf(raw []byte) (n, seq int) {
	_, rest, _ := bytes.Cut(raw, []byte(`"output":"`))
	text := rest[:bytes.LastIndexByte(rest, '"')]
	text = text[:bytes.LastIndex(text, []byte(`","`))]
	_, _ = fmt.Sscanf(string(rest[len(text):]), `","seq":%d}`, &seq)
	return len(text) - bytes.Count(text, []byte{'\\'}), seq
}

// BenchmarkAgentNoop is execute_command of `:` with its snapshot, from emit to
// command_completed, over loopback.
func BenchmarkAgentNoop(b *testing.B) {
	c, h := newCounter(b), newHost(b)
	h.run(c.url, "--log-level", "warn")
	s := <-c.sockets
	var took []time.Duration
	run := func(i int) {
		start := time.Now()
		id := fmt.Sprint("n", i)
		if err := s.Emit(context.Background(), "execute_command", obj{"command_id": id, "command": ":"}); err != nil {
			b.Fatal(err)
		}
		if got := <-c.completed; got != id || c.bad {
			b.Fatalf("%s completed instead of %s", got, id)
		}
		took = append(took, time.Since(start))
	}
	run(-1)
	idle := h.rss()
	took = nil
	for i := 0; b.Loop(); i++ {
		run(i)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(idle)/1024, "idle-RSS-MiB")
	b.ReportMetric(float64(h.rss())/1024, "RSS-MiB")
	h.stop()
	b.ReportMetric(float64(h.used.Microseconds())/1000/float64(b.N), "agent-CPU-ms/op")
}

// streamed is how much a command of the benchmarks prints.
const streamed = 500 << 20

const text = `yes 'The quick brown fox jumps over the lazy dog, and then some more of that.' | head -c 524288000`

// watch samples the agent's memory until stop.
func (h *host) watch() (stop func() (most int)) {
	most, done, ended := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			most = max(most, h.rss())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() int { close(done); <-ended; return most }
}

// report tells the speed, and what the agent alone cost: on a machine that does
// other things the first says little.
func report(b *testing.B, h *host, d time.Duration, rss int) {
	h.stop()
	b.ReportMetric(streamed*float64(b.N)/1e6/h.used.Seconds(), "MB/agent-CPU-s")
	b.ReportMetric(streamed*float64(b.N)/1e6/d.Seconds(), "MB/s")
	b.ReportMetric(float64(rss)/1024, "max-RSS-MiB")
}

// rawCopy is what there is to reach: the same command's output, read as we read
// it, through a bare WebSocket, masked but without events, spool or snapshot.
func rawCopy(b *testing.B) time.Duration {
	came := make(chan int64)
	h := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			b.Error(err)
			return
		}
		c.SetReadLimit(-1)
		var n int64
		for {
			_, r, err := c.Reader(context.Background())
			if err != nil {
				break
			}
			k, _ := io.Copy(io.Discard, r)
			n += k
		}
		came <- n
	}))
	defer h.Close()
	c, _, err := websocket.Dial(context.Background(), h.URL, nil)
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	cmd := exec.Command("bash", "-c", text)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	for err == nil {
		var n int
		if n, err = out.Read(buf); n > 0 {
			if err := c.Write(context.Background(), websocket.MessageText, buf[:n]); err != nil {
				b.Fatal(err)
			}
		}
	}
	_ = cmd.Wait()
	go func() { _ = c.Close(websocket.StatusNormalClosure, "") }()
	if n := <-came; n != streamed {
		b.Fatalf("%d bytes came", n)
	}
	return time.Since(start)
}

// BenchmarkAgentStream streams to our server, in turns with rawCopy.
func BenchmarkAgentStream(b *testing.B) {
	c, h := newCounter(b), newHost(b)
	h.run(c.url, "--log-level", "warn")
	s := <-c.sockets
	stop := h.watch()
	var raw, took time.Duration
	for i := range b.N {
		raw += rawCopy(b)
		start := time.Now()
		c.bytes, c.next = 0, 0
		if err := s.Emit(context.Background(), "execute_command", obj{"command_id": fmt.Sprint("s", i), "command": text}); err != nil {
			b.Fatal(err)
		}
		<-c.completed
		if c.bad || c.bytes != streamed {
			b.Fatalf("%d bytes came, bad: %v", c.bytes, c.bad)
		}
		took += time.Since(start)
	}
	report(b, h, took, stop())
	b.ReportMetric(streamed*float64(b.N)/1e6/raw.Seconds(), "raw-MB/s")
	b.ReportMetric(took.Seconds()/raw.Seconds(), "times-raw")
}

// BenchmarkAgentStreamNode streams to Node's server.
func BenchmarkAgentStreamNode(b *testing.B) {
	n, h := startBoard(b, "node", "COUNT=1"), newHost(b)
	h.run(n.url(), "--log-level", "warn")
	n.registered(1)
	stop := h.watch()
	start := time.Now()
	for i := range b.N {
		id := fmt.Sprint("s", i)
		n.send("execute_command", obj{"command_id": id, "command": text})
		done := n.one("command_completed", id)
		counted, _ := done.Payload["counted"].(obj)
		if counted["bytes"] != float64(streamed) || counted["gaps"] != 0.0 {
			b.Fatalf("counted %v", counted)
		}
	}
	took := time.Since(start)
	report(b, h, took, stop())
}
