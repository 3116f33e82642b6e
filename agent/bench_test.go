package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

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

// BenchmarkShare is execute_command from emit to command_completed with a
// session that takes no time: the agent's own share.
func BenchmarkShare(b *testing.B) {
	h := newHost(b)
	h.lean = true
	c := newCatcher(b)
	stop := c.agent(b, h, h.open)
	defer stop()
	s := <-c.sockets
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		if err := s.Emit(context.Background(), "execute_command", obj{"command_id": fmt.Sprint(i), "command": ":"}); err != nil {
			b.Fatal(err)
		}
		<-h.at("/srv/app").reached
		<-c.ended
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

// catcher is our server; it acks what comes and tells of completions.
type catcher struct {
	url     string
	sockets chan *socketio.Socket
	ended   chan bool
}

func newCatcher(b *testing.B) *catcher {
	c := &catcher{sockets: make(chan *socketio.Socket, 10), ended: make(chan bool)}
	srv := socketio.NewServer(socketio.ServerConfig{})
	n := srv.Of("/")
	n.On("agent_register", func(s *socketio.Socket, _ *socketio.Event) { c.sockets <- s })
	n.On("command_output", func(_ *socketio.Socket, e *socketio.Event) { _ = e.Ack(context.Background()) })
	n.On("command_completed", func(_ *socketio.Socket, e *socketio.Event) {
		_ = e.Ack(context.Background())
		c.ended <- json.Valid(e.Arg(0))
	})
	web := httptest.NewServer(srv)
	c.url = web.URL
	b.Cleanup(func() { _ = srv.Close(); web.Close() })
	return c
}

// agent runs one that serves /srv/app.
func (c *catcher) agent(b *testing.B, h *host, open Opener) (stop func()) {
	log := logrus.New()
	log.SetLevel(logrus.WarnLevel)
	a, err := New(Options{URL: c.url, State: h.dir, Trees: []string{"/srv/app"}, Open: open, Log: log})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- a.Run(ctx) }()
	return func() {
		cancel()
		if err := <-stopped; err != nil {
			b.Error(err)
		}
	}
}

// BenchmarkStream is the agent and our server in one process, without a shell.
func BenchmarkStream(b *testing.B) {
	h := newHost(b)
	h.lean = true
	const mb = 100
	c := newCatcher(b)
	stop := c.agent(b, h, func(ctx context.Context, path string) (Session, error) {
		s, err := h.open(ctx, path)
		return printer{s.(*fake), mb}, err
	})
	defer stop()
	s := <-c.sockets
	i := 0
	for b.Loop() {
		i++
		if err := s.Emit(context.Background(), "execute_command", obj{"command_id": fmt.Sprint(i), "command": "print"}); err != nil {
			b.Fatal(err)
		}
		<-c.ended
	}
	b.ReportMetric(mb*float64(b.N)/b.Elapsed().Seconds(), "MB/s")
}
