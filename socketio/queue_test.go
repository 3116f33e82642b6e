package socketio

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"
)

func TestQueueIsBounded(t *testing.T) {
	q := newQueue[int](10 * itemOverhead)
	for i := range 10 {
		if ok, err := q.tryPush(i, 0); !ok || err != nil {
			t.Fatalf("push %d: %v %v", i, ok, err)
		}
	}
	if ok, _ := q.tryPush(10, 0); ok {
		t.Fatal("the queue took more than its limit")
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("given up"))
	if err := q.push(ctx, 10, 0); err == nil || err.Error() != "given up" {
		t.Fatalf("got %v", err)
	}
	pushed := make(chan error)
	go func() { pushed <- q.push(context.Background(), 10, 1_000_000) }() // larger than all of it
	always := func(int) bool { return true }
	for i := range 11 {
		it, ok, _ := q.take(always)
		for !ok {
			<-q.ready
			it, ok, _ = q.take(always)
		}
		if it.value != i {
			t.Fatalf("%d came in place %d", it.value, i)
		}
		q.release(it.weight)
	}
	if err := wait(t, pushed, "push"); err != nil {
		t.Fatal(err)
	}
}

func TestQueueFinishFreesThoseWhoWait(t *testing.T) {
	q := newQueue[int](itemOverhead)
	if err := q.push(context.Background(), 1, 0); err != nil {
		t.Fatal(err)
	}
	pushed := make(chan error)
	go func() { pushed <- q.push(context.Background(), 2, 0) }()
	q.finish()
	q.finish()
	if err := wait(t, pushed, "push"); !errors.Is(err, ErrDisconnected) {
		t.Fatalf("got %v", err)
	}
	if it, ok, _ := q.take(func(int) bool { return true }); !ok || it.value != 1 {
		t.Fatal("what was in line is gone")
	}
	if _, ok, last := q.take(nil); ok || !last {
		t.Fatal("the end is not seen")
	}
}

func TestOutboxKeepsItemsTogether(t *testing.T) {
	o := newOutbox(1 << 20)
	event := []frame{textFrame('4', "5"), {data: []byte{1}, binary: true}, {data: []byte{2}, binary: true}}
	for range 10 {
		if err := o.send(context.Background(), event); err != nil {
			t.Fatal(err)
		}
	}
	o.hurry(textFrame(framePong, ""))
	o.hurry(textFrame(framePong, ""))
	total := 0
	for first := true; total < 31; first = false {
		batch, err := o.pop(context.Background(), 8, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		total += len(batch)
		if first {
			if batch[0].kind() != framePong || batch[1].kind() == framePong {
				t.Fatalf("the heartbeat is not first and once: %v", batch)
			}
			batch = batch[1:]
		}
		if len(batch)%len(event) != 0 || len(batch) > 8 {
			t.Fatalf("an event was cut: %v", batch)
		}
	}
	o.finish()
	if batch, err := o.pop(context.Background(), 8, 8); err != nil || batch != nil {
		t.Fatalf("got %v, %v", batch, err)
	}
}

func TestBackoff(t *testing.T) {
	b := Backoff{}.withDefaults()
	for n := range 2000 { // the reference client's delay is 0 at try 1,015
		want := min(time.Second<<min(n, 20), 30*time.Second)
		if d := b.delay(n, nil); d < want/2 || d > want*3/2 {
			t.Fatalf("try %d: %v, want %v ± 50 %%", n, d, want)
		}
	}
	seen := map[time.Duration]bool{}
	for range 100 {
		seen[b.delay(50, nil)] = true
	}
	if len(seen) < 90 {
		t.Errorf("%d different delays in 100: the cap takes the jitter away", len(seen))
	}
	for _, err := range []error{
		&ConnectError{}, &HandshakeError{Status: http.StatusUnauthorized}, errors.Join(errors.New("x"), &HandshakeError{Status: http.StatusForbidden}),
	} {
		if d := b.delay(0, err); d < b.Refused/2 {
			t.Errorf("%v: again after %v", err, d)
		}
	}
	if d := b.delay(0, &HandshakeError{Status: 429, RetryAfter: time.Minute}); d < time.Minute || d > 2*time.Minute {
		t.Errorf("Retry-After of a minute: %v", d)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 0, "x": 0, "-5": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "99999999999999": time.Hour,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:04:00 GMT": 0, "Fri, 02 Jan 2099 03:04:00 GMT": time.Hour,
	} {
		if got := parseRetryAfter(v, now); got != want {
			t.Errorf("%q: %v, want %v", v, got, want)
		}
	}
}

// TestBackoffCountsUntilStable: connections that do not last make the waits
// grow, one that lasts starts anew.
func TestBackoffCountsUntilStable(t *testing.T) {
	s, url := startServer(t, ServerConfig{})
	s.Of("/").OnConnect(func(s *Socket) { s.Disconnect(true) })
	took := func(stable time.Duration) time.Duration {
		c := startClient(t, Config{URL: url, Backoff: Backoff{Min: 10 * time.Millisecond, Max: 10 * time.Second, Stable: stable}})
		defer c.stop()
		begin := time.Now()
		for range 6 {
			c.connect(t)
		}
		return time.Since(begin)
	}
	// 5 waits: 10+20+40+80+160 ms, or 5 of 10 ms, each ± 50 %. They are never
	// shorter; a busy machine makes them longer.
	const grown = 155 * time.Millisecond
	if d := took(time.Hour); d < grown {
		t.Errorf("5 waits took %v, though no connection was stable", d)
	}
	least := took(time.Nanosecond)
	for tries := 1; least >= grown && tries < 20; tries++ {
		least = min(least, took(time.Nanosecond))
	}
	if least >= grown {
		t.Errorf("5 waits took %v, though all connections were stable", least)
	}
}

func TestConfig(t *testing.T) {
	for url, want := range map[string]string{
		"ws://h": "http://h/socket.io/", "wss://h:1/": "https://h:1/socket.io/", "https://h?a=b": "https://h/socket.io/?a=b",
	} {
		if _, base, err := (Config{URL: url}).withDefaults(); err != nil || base.String() != want {
			t.Errorf("%s: got %v, %v", url, base, err)
		}
	}
	for _, c := range []Config{
		{},
		{URL: "h:1"},
		{URL: "ftp://h"},
		{URL: "http://"},
		{URL: "http://:1"},
		{URL: "http://h:99999"},
		{URL: "http://h/path"},
		{URL: "http://h", Namespace: "x"},
		{URL: "http://h", Namespace: "/a,b"},
		{URL: "http://h", Transports: []string{"x"}},
		{URL: "http://h\x00"},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}
