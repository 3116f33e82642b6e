package socketio

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func (b bare) checkOpen(text string, upgrades ...any) {
	b.t.Helper()
	var got map[string]any
	if text == "" || text[0] != '0' || json.Unmarshal([]byte(text[1:]), &got) != nil {
		b.t.Fatalf("open packet %q", text)
	}
	if sid, ok := got["sid"].(string); !ok || sid == "" {
		b.t.Fatalf("sid in %q", text)
	}
	delete(got, "sid")
	want := map[string]any{"upgrades": append([]any{}, upgrades...), "pingInterval": 300.0, "pingTimeout": 200.0, "maxPayload": 1e6}
	if !reflect.DeepEqual(got, want) {
		b.t.Fatalf("got %v, want %v", got, want)
	}
}

func TestSuiteHandshake(t *testing.T) {
	_, b := suiteServer(t, hasty)
	_, body := b.do("GET", pollQuery, "")
	b.checkOpen(body, "websocket")
	w, err := b.dial("EIO=4&transport=websocket")
	if err != nil {
		t.Fatal(err)
	}
	b.checkOpen(string(w.next().data))
	for _, q := range []string{"transport=polling", "EIO=abc&transport=polling", "EIO=4", "EIO=4&transport=abc", "EIO=4&transport=websocket"} {
		if s, _ := b.do("GET", q, ""); s != 400 && s != 426 {
			t.Errorf("GET %s: %d", q, s)
		}
	}
	for _, q := range []string{"transport=websocket", "EIO=abc&transport=websocket", "EIO=4", "EIO=4&transport=abc"} {
		if _, err := b.dial(q); err == nil {
			t.Errorf("a WebSocket was opened for %s", q)
		}
	}
	b.want("POST", pollQuery, "", 400, "")
	b.want("PUT", pollQuery, "", 400, "")
	b.want("GET", pollQuery+"&sid=unknown", "", 400, `{"code":1,"message":"Session ID unknown"}`+"\n")
	if _, err := b.dial("EIO=4&transport=websocket&sid=unknown"); err == nil {
		t.Error("a WebSocket was opened for an unknown session")
	}
}

func TestSuitePollingMessages(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	_, q := b.session()
	b.want("POST", q, "40\x1e42[\"message\",1]\x1e42[\"message\",2]", 200, "ok")
	got := b.heard(q, `"message-back",2`)
	got = got[strings.Index(got, "42"):]
	if want := "42[\"auth\",{}]\x1e42[\"message-back\",1]\x1e42[\"message-back\",2]"; got != want {
		t.Fatalf("got %q", got)
	}
	b.want("POST", q, "451-[\"message\",{\"_placeholder\":true,\"num\":0}]\x1ebAQIDBA==", 200, "ok")
	b.heard(q, "bAQIDBA==")
	b.want("POST", q, "abc", 400, "") // invalid: the session ends
	b.want("GET", q, "", 400, "")
	_, q = b.session()
	b.want("POST", q, strings.Repeat("x", 1_000_001), 413, "")
	b.want("GET", q, "", 400, "")
}

func TestSuitePollingOverlap(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	_, q := b.session()
	type answer struct {
		status int
		body   string
	}
	both := make(chan answer, 2)
	for range 2 {
		go func() {
			s, body := b.do("GET", q, "")
			both <- answer{s, body}
		}()
	}
	got := []answer{wait(t, both, "answer"), wait(t, both, "answer")}
	slices.SortFunc(got, func(a, b answer) int { return a.status - b.status })
	if got[0].status != 200 || got[0].body != "1" || got[1].status != 400 {
		t.Fatalf("got %v", got)
	}
	b.want("GET", q, "", 400, "")
}

// gone waits until a session is forgotten.
func gone(t *testing.T, s *Server) {
	t.Helper()
	until(t, "end of the sessions", func() bool { return s.Sessions() == 0 })
}

func TestSuitePollingCancelled(t *testing.T) {
	s, b := suiteServer(t, ServerConfig{})
	sid, q := b.session()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		b.doContext(ctx, "GET", q, "")
		close(ended)
	}()
	polling(t, s, sid)
	cancel()
	wait(t, ended, "end")
	gone(t, s)
	b.want("GET", q, "", 400, "")
}

func TestSuiteHeartbeat(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{PingInterval: hasty.PingInterval}) // the pongs may take their time
	_, q := b.session()
	for range 3 {
		b.want("GET", q, "", 200, "2")
		b.want("POST", q, "3", 200, "ok")
	}
	w := b.ws()
	for range 3 {
		if f := wait(t, w.frames, "ping"); string(f.data) != "2" {
			t.Fatalf("got %q", f.data)
		}
		w.send("3")
	}
	s, b := suiteServer(t, hasty)
	ends := make(chan error, 1)
	s.Of("/").OnDisconnect(func(_ *Socket, err error) { ends <- err })
	begin := time.Now()
	_, silent := b.session() // never polls
	b.joined().closed()      // never answers
	if err := wait(t, ends, "end"); !errors.Is(err, ErrHeartbeat) {
		t.Errorf("ended by %v", err)
	}
	if d := time.Since(begin); d < 400*time.Millisecond {
		t.Errorf("closed after %v, want 500 ms", d)
	}
	gone(t, s)
	b.want("GET", silent, "", 400, "")
}

func TestSuiteClose(t *testing.T) {
	s, b := suiteServer(t, ServerConfig{})
	sid, q := b.session()
	polled := make(chan string, 1)
	go func() {
		_, body := b.do("GET", q, "")
		polled <- body
	}()
	polling(t, s, sid)
	b.want("POST", q, "1", 200, "ok")
	if body := wait(t, polled, "answer"); body != "6" {
		t.Errorf("the poll was answered by %q", body)
	}
	b.want("GET", q, "", 400, "")
	w := b.ws()
	w.send("1")
	w.closed()
	w = b.ws()
	w.send("abc")
	w.closed()
	w = b.ws()
	w.sendBinary(1)
	w.closed()
}

func TestSuiteUpgrade(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	sid, q := b.session()
	b.want("POST", q, "40", 200, "ok")
	b.heard(q, `["auth",{}]`) // what is in line later comes over either transport: see below
	wsQuery := "EIO=4&transport=websocket&sid=" + sid
	w, err := b.dial(wsQuery)
	if err != nil {
		t.Fatal(err)
	}
	w.send("2probe")
	w.expect("3probe")
	b.want("GET", q, "", 200, "6")
	if _, err := b.dial(wsQuery); err == nil {
		t.Error("a second upgrade was let in")
	}
	w.send("5", `42["message","hello"]`)
	w.expect(`42["message-back","hello"]`)
	b.want("GET", q, "", 400, "")
	b.want("POST", q, `42["message","x"]`, 400, "")
	if _, err := b.dial(wsQuery); err == nil {
		t.Error("a second WebSocket was let in")
	}
	w.send(`42["message","still"]`)
	w.expect(`42["message-back","still"]`)
}

// TestUpgradeKeepsOrder: the move may come anywhere in a flood.
func TestUpgradeKeepsOrder(t *testing.T) {
	const n = 2000
	s, b := suiteServer(t, ServerConfig{})
	s.Of("/").On("count", func(s *Socket, _ *Event) {
		for i := range n {
			_ = s.Emit(context.Background(), "n", i)
		}
	})
	sid, q := b.session()
	b.want("POST", q, "40\x1e42[\"count\"]", 200, "ok")
	got := b.heard(q, `["auth",{}]`)
	w, err := b.dial("EIO=4&transport=websocket&sid=" + sid)
	if err != nil {
		t.Fatal(err)
	}
	w.send("2probe")
	for {
		_, body := b.do("GET", q, "")
		if body == "6" {
			break
		}
		got += "\x1e" + body
	}
	w.expect("3probe")
	w.send("5")
	for last := fmt.Sprintf(`42["n",%d]`, n-1); !strings.HasSuffix(got, last); {
		got += "\x1e" + string(w.next().data)
	}
	for i, p := range strings.Split(got, "\x1e")[2:] {
		if want := fmt.Sprintf(`42["n",%d]`, i); p != want {
			t.Fatalf("%s in the place of %s", p, want)
		}
	}
}

func TestSuiteUpgradeGivenUp(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	sid, q := b.session()
	w, err := b.dial("EIO=4&transport=websocket&sid=" + sid)
	if err != nil {
		t.Fatal(err)
	}
	w.send("4no probe")
	w.closed()
	b.want("POST", q, "40", 200, "ok")
	if status, body := b.do("GET", q, ""); status != 200 || !strings.HasPrefix(body, "40") {
		t.Fatalf("polling did not go on: %d %q", status, body)
	}
}
