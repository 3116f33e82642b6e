package backends

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy is a TCP proxy on loopback that cuts and refuses connections.
type Proxy struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	canned  string // answer to the next connections, instead of the target's
	refuse  int    // how many get it
	refused int
	conns   map[net.Conn]struct{}
}

// NewProxy passes connections on to target until the test ends.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{target: target, listener: l, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		_ = l.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// URL of the proxy.
func (p *Proxy) URL() string { return "http://" + p.listener.Addr().String() }

// Refuse answers the first request on each of the next n connections with
// response, an HTTP response as it goes over the wire, and closes it.
func (p *Proxy) Refuse(n int, response string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.refused, p.canned = n, 0, response
}

// Refused is how many connections were refused since Refuse.
func (p *Proxy) Refused() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refused
}

// Cut closes all connections now, and says how many there were.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.conns)
	for c := range p.conns {
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // a reset: what is in the buffers is lost, as in life
		}
		_ = c.Close()
	}
	return n
}

// CutEvery cuts at each interval, times times, and returns.
func (p *Proxy) CutEvery(interval time.Duration, times int) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for range times {
		<-tick.C
		p.Cut()
	}
}

func (p *Proxy) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

func (p *Proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) drop(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	_ = c.Close()
}

func (p *Proxy) serve(c net.Conn) {
	if !p.keep(c) {
		_ = c.Close()
		return
	}
	defer p.drop(c)
	if response, ok := p.next(); ok {
		buf := make([]byte, 64<<10)
		if _, err := c.Read(buf); err == nil || errors.Is(err, io.EOF) {
			_, _ = io.WriteString(c, response)
		}
		return
	}
	up, err := net.Dial("tcp", p.target)
	if err != nil {
		return
	}
	if !p.keep(up) {
		_ = up.Close()
		return
	}
	defer p.drop(up)
	var wg sync.WaitGroup
	wg.Go(func() { pipe(up, c) })
	wg.Go(func() { pipe(c, up) })
	wg.Wait()
}

func (p *Proxy) next() (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refused >= p.refuse {
		return "", false
	}
	p.refused++
	return p.canned, true
}

// pipe copies until one side ends, and then ends both.
func pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from) // an error is an end
	_ = to.Close()
	_ = from.Close()
}
