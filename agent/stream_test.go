package agent

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"deployx/internal/wire"
	"deployx/socketio"
)

// outputOf puts a command's output together, each seq once, and says whether
// one is missing.
func (b *backend) outputOf(id string) (text string, gap bool) {
	pieces := map[int]string{}
	for _, g := range b.all(named("command_output", id)) {
		seq := int(g.num("seq"))
		if old, ok := pieces[seq]; ok && old != g.str("output") {
			b.t.Errorf("piece %d came twice, and not the same", seq)
		}
		pieces[seq] = g.str("output")
	}
	var out strings.Builder
	for i := 0; len(pieces) > 0; i++ {
		if _, ok := pieces[i]; !ok {
			gap = true
			continue
		}
		out.WriteString(pieces[i])
		delete(pieces, i)
	}
	return out.String(), gap
}

func TestOutputComesInOrderAndWhole(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	const n = 3 << 20
	b.send("execute_command", obj{"command_id": "c", "command": fmt.Sprintf(`out %d "x"`, n)})
	b.one("command_completed", "c")
	text, gap := b.outputOf("c")
	if gap || len(text) != n {
		t.Errorf("%d of %d bytes, gap %v", len(text), n, gap)
	}
	last := -1
	for _, g := range b.all(named("command_output", "c")) {
		if int(g.num("seq")) != last+1 {
			t.Fatalf("%v came after %d", g.num("seq"), last)
		}
		last++
	}
}

// The completion never overtakes the output, whatever is cut.
func TestOutputIsRepairedAfterACut(t *testing.T) {
	for _, silent := range []bool{false, true} {
		t.Run(fmt.Sprint("silent=", silent), func(t *testing.T) {
			b := newBackend(t, socketio.ServerConfig{})
			b.silent.Store(silent)
			startAgent(t, b, newHost(t), unheard)
			b.registered(1)
			const n = 3 << 20
			b.send("execute_command", obj{"command_id": "c", "command": fmt.Sprintf(`out %d "y"`, n)})
			for i := range 4 {
				b.wait(i*5+2, "output", named("command_output", "c"))
				b.srv.Drop()
				b.registered(i + 2)
			}
			done := b.one("command_completed", "c")
			text, gap := b.outputOf("c")
			if gap || len(text) != n || done.yes("success") != true {
				t.Errorf("%d of %d bytes, gap %v, %s", len(text), n, gap, done.raw[:200])
			}
		})
	}
}

func TestChunksStayUnderHalfOfMaxPayload(t *testing.T) {
	const most = 20_000
	b := newBackend(t, socketio.ServerConfig{MaxPayload: most})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_command", obj{"command_id": "c", "command": `out 50000 "\x01"`})
	b.one("command_completed", "c")
	text, gap := b.outputOf("c")
	if gap || len(text) != 50000 {
		t.Errorf("%d bytes, gap %v", len(text), gap)
	}
	for _, g := range b.all(named("command_output", "c")) {
		if len(g.raw) > most/2 {
			t.Fatalf("a chunk of %d bytes", len(g.raw))
		}
	}
}

// A completion that is too large for the backend goes without its output.
func TestCompletionFitsThePayload(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{MaxPayload: 20_000})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.send("execute_command", obj{"command_id": "c", "command": "echo " + strings.Repeat("z", 30_000)})
	b.send("execute_command", obj{"command_id": "d", "command": "cat", "stdin": true})
	b.one("command_started", "d")
	for range 3 {
		b.ask("command_input", obj{"command_id": "d", "data": strings.Repeat("w", 10_000)})
	}
	b.ask("command_input", obj{"command_id": "d", "eof": true})
	d := b.one("command_completed", "d")
	if d.str("output") != "" || !d.yes("truncated") || !d.yes("success") {
		t.Errorf("got %.300s", d.raw)
	}
	if text, gap := b.outputOf("d"); gap || len(text) != 30_000 {
		t.Errorf("%d bytes streamed", len(text))
	}
}

func TestLargeBatchFitsThePayload(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{MaxPayload: 60_000})
	h := newHost(t)
	h.lean = true
	startAgent(t, b, h)
	b.registered(1)
	commands := []string{"exit 3"}
	for range 300 {
		commands = append(commands, "echo "+strings.Repeat("c", 100))
	}
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": commands})
	done := b.one("batch_execution_completed", "b")
	if done.num("total_commands") != 301 || done.num("failed_commands") != 1 || !done.yes("truncated") || len(done.m["execution_results"].([]any)) != shortList {
		t.Errorf("got %.500s", done.raw)
	}
}

func TestUTF8IsNotCutAndBadBytesAreReplaced(t *testing.T) {
	s := newSpool(t.TempDir(), spoolBytes)
	const text = "aé€𝄞 \xff\xc3(z\xe2\x82"
	for i := range len(text) {
		if err := s.write("stdout", []byte{text[i]}); err != nil {
			t.Fatal(err)
		}
		if i%3 == 0 {
			if err := s.write("stderr", []byte("é")[:1+i%2]); err != nil {
				t.Fatal(err)
			}
		}
	}
	out := map[string]string{}
	for end := false; ; {
		c, p, err := s.next(5, end)
		if err != nil {
			t.Fatal(err)
		}
		if p == nil && end {
			break
		}
		if p == nil {
			end = true
			continue
		}
		if again, err := s.again(c); err != nil || string(again) != string(p) {
			t.Fatalf("%q again is %q, %v", p, again, err)
		}
		if r, n := utf8.DecodeLastRune(p); r == utf8.RuneError && n == 1 && c.stream == "stdout" && utf8.RuneStart(p[len(p)-1]) && p[len(p)-1] != 0xff && !end {
			t.Errorf("cut in a character: %q", p)
		}
		out[c.stream] += string(p)
	}
	if out["stdout"] != text {
		t.Errorf("got %q, want %q", out["stdout"], text)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

// The spool against a plain buffer, with confirmations at random.
func TestSpoolIsARing(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const capacity = 100 << 10
	s := newSpool(t.TempDir(), capacity)
	var want, got []byte
	for range 5000 {
		switch rnd.IntN(3) {
		case 0:
			p := make([]byte, min(int64(rnd.IntN(20<<10)), s.room()))
			for i := range p {
				p[i] = byte('a' + rnd.IntN(26))
			}
			want = append(want, p...)
			if err := s.write("stdout", p); err != nil {
				t.Fatal(err)
			}
		case 1:
			_, p, err := s.next(int64(1+rnd.IntN(8<<10)), false)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, p...)
		case 2:
			if n := len(s.chunks); n > 0 {
				i := rnd.IntN(n)
				p, err := s.again(s.chunks[i])
				if c := s.chunks[i]; err != nil || string(p) != string(want[c.start:c.end]) {
					t.Fatalf("chunk %d again: %v", c.seq, err)
				}
				s.confirm(i)
			}
		}
	}
	if string(got) != string(want[:len(got)]) || len(got) < 10*capacity {
		t.Errorf("%d bytes of %d came, or others than went in", len(got), len(want))
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

func TestOutputWithoutABackendIsSpooledThenDropped(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	const spool = 256 << 10
	a := startAgent(t, b, newHost(t), func(o *Options) {
		o.SpoolBytes = spool
		o.Backoff = socketio.Backoff{Min: 400 * time.Millisecond, Max: 400 * time.Millisecond}
	})
	b.registered(1)
	b.send("execute_command", obj{"command_id": "wait", "command": "wait"})
	b.one("command_started", "wait")
	b.ask("execute_command", obj{"command_id": "c", "command": fmt.Sprintf(`out %d "z"`, 4*spool)})
	b.ask("execute_command", obj{"command_id": "d", "command": `echo ` + strings.Repeat("after ", 10)})
	b.srv.Drop()
	for conn, changed := a.link.now(); conn != 0; conn, changed = a.link.now() {
		<-changed
	}
	a.trees.all()[0].interrupt("") // the command writes with nobody there, and must not wait
	b.registered(2)
	done := b.one("command_completed", "c")
	if !done.yes("success") || !done.yes("truncated") {
		t.Errorf("got %.300s", done.raw)
	}
	b.one("command_completed", "d")
	text, _ := b.outputOf("c")
	if len(text) < spool/2 || len(text) >= 4*spool {
		t.Errorf("%d bytes came of a spool of %d", len(text), spool)
	}
	if left, _ := filepath.Glob(filepath.Join(a.dir, "output-*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// A slow backend slows the command; the agent's memory does not grow with it.
func TestBackPressure(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{HandlerBuffer: 64 << 10, SendBuffer: 64 << 10})
	a := startAgent(t, b, newHost(t), func(o *Options) { o.AckTimeout, o.SpoolBytes = time.Minute, 2<<20 })
	b.registered(1)
	thaw := b.freeze()
	const n = 24 << 20
	b.send("execute_command", obj{"command_id": "c", "command": fmt.Sprintf(`out %d "b"`, n)})
	<-a.host.at("/srv/app").reached
	stood := 0
	var last int64 = -1
	for stood < 10 { // until it stands still
		time.Sleep(50 * time.Millisecond)
		var written int64
		a.mu.Lock()
		for s := range a.streams {
			s.mu.Lock()
			written = s.spool.written
			s.mu.Unlock()
		}
		a.mu.Unlock()
		if stood++; written != last {
			stood, last = 0, written
		}
	}
	if last > 16<<20 {
		t.Errorf("the command ran %d bytes ahead of the backend", last)
	}
	thaw()
	b.one("command_completed", "c")
	if text, gap := b.outputOf("c"); gap || len(text) != n {
		t.Errorf("%d of %d bytes, gap %v", len(text), n, gap)
	}
}

// A frozen backend does not hold up the end of the agent.
func TestStopsThoughTheBackendIsFrozen(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{HandlerBuffer: 64 << 10, SendBuffer: 64 << 10})
	a := startAgent(t, b, newHost(t), func(o *Options) {
		o.SpoolBytes, o.Grace, o.FlushTimeout = 1<<20, 10*time.Millisecond, 10*time.Millisecond
	})
	b.registered(1)
	thaw := b.freeze()
	defer thaw()
	b.send("execute_command", obj{"command_id": "c", "command": fmt.Sprintf(`out %d "b"`, 30<<20)})
	<-a.host.at("/srv/app").reached
	a.stop()
}

func TestSweepsSpoolsOfAKilledAgent(t *testing.T) {
	b, h := newBackend(t, socketio.ServerConfig{}), newHost(t)
	dir := filepath.Join(h.dir, "agent")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	name := writeFile(t, filepath.Join(dir, "output-123"), "old", 0o600)
	startAgent(t, b, h)
	if _, err := os.Stat(name); err == nil {
		t.Error("it is still there")
	}
}

// The events are what the wire's types say.
func TestOutputEventsAreOfTheWire(t *testing.T) {
	three := 3
	text := []byte("a\"\\\n\x01é\xff\u2028")
	for _, s := range []*stream{
		{agentID: "a", id: "c"}, {agentID: "a", id: "c\"\n", batch: "b", index: &three}, {agentID: "a", id: "c", legacy: true},
	} {
		name, e := s.event(chunk{seq: 7, stream: "stderr"}, text)
		var want any = wire.AgentOutput{AgentID: s.agentID, Output: wire.Output{
			CommandID: s.id, BatchID: s.batch, Index: s.index, Stream: "stderr", Output: string(text), Seq: 7,
		}}
		if s.legacy {
			want = wire.DeploymentOutput{AgentID: s.agentID, CommandID: s.id, Output: string(text)}
		}
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var a, w map[string]any
		got := e.(socketio.Appender).AppendJSON([]byte(nil))
		if json.Unmarshal(got, &a) != nil || json.Unmarshal(b, &w) != nil || !reflect.DeepEqual(a, w) {
			t.Errorf("%s is %s, want %s", name, got, b)
		}
	}
}
