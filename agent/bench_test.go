package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"deployx/session"
	"deployx/socketio"
)

// printer is a session whose command prints so many MB of text.
type printer struct {
	*fake
	mb int
}

func (p printer) Run(ctx context.Context, c session.Command) (session.Result, error) {
	block := []byte(strings.Repeat("The quick brown fox jumps over the lazy dog, and then some more of that.\n", 900)[:64<<10])
	run := c
	done := run.Done
	run.Done = func(r session.Result) {
		for range p.mb * 1e6 / len(block) {
			_, _ = c.Stdout.Write(block)
		}
		done(r)
	}
	return p.fake.Run(ctx, run)
}

// BenchmarkStream is the agent and our server in one process, without a shell.
func BenchmarkStream(b *testing.B) {
	h := newHost(b)
	h.lean = true
	ended := make(chan bool)
	sockets := make(chan *socketio.Socket, 10)
	srv := socketio.NewServer(socketio.ServerConfig{})
	n := srv.Of("/")
	n.On("agent_register", func(s *socketio.Socket, _ *socketio.Event) { sockets <- s })
	n.On("command_output", func(_ *socketio.Socket, e *socketio.Event) { _ = e.Ack(context.Background()) })
	n.On("command_completed", func(_ *socketio.Socket, e *socketio.Event) {
		_ = e.Ack(context.Background())
		ended <- json.Valid(e.Arg(0))
	})
	web := httptest.NewServer(srv)
	defer web.Close()
	defer srv.Close() //nolint:errcheck // always nil
	const mb = 100
	a, err := New(Options{URL: web.URL, State: h.dir, Trees: []string{"/srv/app"}, Open: func(ctx context.Context, path string) (Session, error) {
		s, err := h.open(ctx, path)
		return printer{s.(*fake), mb}, err
	}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- a.Run(ctx) }()
	s := <-sockets
	i := 0
	for b.Loop() {
		i++
		if err := s.Emit(context.Background(), "execute_command", obj{"command_id": fmt.Sprint(i), "command": "print"}); err != nil {
			b.Fatal(err)
		}
		<-ended
	}
	b.ReportMetric(mb*float64(b.N)/b.Elapsed().Seconds(), "MB/s")
	cancel()
	if err := <-stopped; err != nil {
		b.Fatal(err)
	}
}
