package socketio

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"deployx/integration/backends"
)

// target is a server to measure against: ours or Node's.
func target(b *testing.B, kind string) string {
	if kind != "ours" {
		return backends.Start(b, kind).URL()
	}
	s, url := startServer(b, ServerConfig{})
	echo(s.Of("/"))
	s.Of("/").On("item", func(*Socket, *Event) {})
	return url
}

// BenchmarkEmit sends events of a size and waits once for an ack behind them
// all, so that everything has been handled.
func BenchmarkEmit(b *testing.B) {
	for _, kind := range []string{"ours", backends.Node} {
		for _, transport := range []string{WebSocket, Polling} {
			for _, size := range []int{64, 4 << 10, 64 << 10} {
				b.Run(fmt.Sprintf("%s/%s/%d", kind, transport, size), func(b *testing.B) {
					c := startClient(b, Config{URL: target(b, kind), Transports: []string{transport}})
					c.connect(b)
					event, text := "discarded", strings.Repeat("x", size)
					if kind == "ours" {
						event = "item"
					}
					b.SetBytes(int64(size))
					b.ReportAllocs()
					for b.Loop() {
						if err := c.Emit(context.Background(), event, text); err != nil {
							b.Fatal(err)
						}
					}
					if _, err := c.EmitAck(context.Background(), "echo"); err != nil {
						b.Fatal(err)
					}
				})
			}
		}
	}
}

// BenchmarkAck is one event and its ack, there and back.
func BenchmarkAck(b *testing.B) {
	for _, kind := range []string{"ours", backends.Node} {
		for _, transport := range []string{WebSocket, Polling} {
			b.Run(kind+"/"+transport, func(b *testing.B) {
				c := startClient(b, Config{URL: target(b, kind), Transports: []string{transport}})
				c.connect(b)
				b.ReportAllocs()
				for b.Loop() {
					if _, err := c.EmitAck(context.Background(), "echo", 1); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkConnections is 1,000 clients against our server, all in this
// process: connect, one event with ack each, and what a pair of ends keeps.
func BenchmarkConnections(b *testing.B) {
	const n = 1000
	for _, transport := range []string{WebSocket, Polling} {
		b.Run(transport, func(b *testing.B) {
			for b.Loop() {
				manyClients(b, transport, n)
			}
		})
	}
}

func manyClients(b testing.TB, transport string, n int) {
	s, url := startServer(b, ServerConfig{})
	echo(s.Of("/"))
	before := memory()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var connected, acked, ended sync.WaitGroup
	var lost atomic.Int64
	clients := make([]*Client, n)
	for i := range clients {
		c, err := New(Config{URL: url, Transports: []string{transport}})
		if err != nil {
			b.Fatal(err)
		}
		clients[i] = c
		connected.Add(1)
		c.OnConnect(func(context.Context, Connection) { connected.Done() })
		ended.Go(func() { _ = c.Run(ctx) })
	}
	connected.Wait()
	for i, c := range clients {
		acked.Go(func() {
			m, err := c.EmitAck(ctx, "echo", i)
			if err != nil || text(m) != fmt.Sprint(i) {
				lost.Add(1)
			}
		})
	}
	acked.Wait()
	if lost.Load() != 0 {
		b.Errorf("%d acks lost", lost.Load())
	}
	after := memory()
	if r, ok := b.(*testing.B); ok {
		r.ReportMetric(float64(after-before)/float64(n), "B/pair")
		r.ReportMetric(float64(runtime.NumGoroutine())/float64(n), "goroutines/pair")
	}
	cancel()
	ended.Wait()
}

// memory is what the runtime holds for heap and stacks, garbage aside.
func memory() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func TestThousandClients(t *testing.T) {
	manyClients(t, WebSocket, 1000)
}
