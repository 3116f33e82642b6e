package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"deployx/socketio"
)

// holding makes the backend keep the acks of some events until free is called.
// What comes later is acked at once.
func (b *backend) holding(names ...string) (free func()) {
	held := make(chan *socketio.Event, 10_000)
	open := make(chan struct{})
	for _, name := range names {
		b.srv.Of("/").On(name, func(_ *socketio.Socket, e *socketio.Event) {
			b.keep(e)
			select {
			case <-open:
				_ = e.Ack(context.Background())
			default:
				held <- e
			}
		})
	}
	return func() {
		close(open)
		for {
			select {
			case e := <-held:
				_ = e.Ack(context.Background()) // of a connection that may be gone
			default:
				return
			}
		}
	}
}

func slow(o *Options) { o.Patience, o.AckTimeout = soon, soon } // an ack may take its time

// Results are on their way together, in order; the end of a batch waits for the
// acks of its commands; after a cut all that were not acked come again, in
// order, before anything new.
func TestManyResultsAreOnTheirWay(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	free := b.holding("batch_command_completed")
	a := startAgent(t, b, newHost(t), slow)
	b.registered(1)
	const n = 20
	var commands []string
	for i := range n {
		commands = append(commands, fmt.Sprintf("echo %d", i))
	}
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": commands})
	order := func(list []got) (indices []int) {
		for _, g := range list {
			indices = append(indices, int(g.num("command_index")))
		}
		return indices
	}
	all := order(b.wait(n, "results", named("batch_command_completed", "b")))
	a.inLine("/srv/app", n+1) // the end is there, and is not sent
	b.srv.Drop()
	again := order(b.wait(2*n, "results again", named("batch_command_completed", "b")))[n:]
	if !slices.IsSorted(all) || !slices.Equal(all, again) {
		t.Errorf("came first %v, then %v", all, again)
	}
	if ends := b.all(named("batch_execution_completed", "")); len(ends) != 0 {
		t.Error("the end of the batch did not wait")
	}
	b.ask("get_shells", obj{}) // what was sent before the answer has come before it
	if ends := b.all(named("batch_execution_completed", "")); len(ends) != 0 {
		t.Error("the end of the batch did not wait on the second connection")
	}
	free()
	b.one("batch_execution_completed", "b")
	a.outboxEmpty()
	for _, c := range commands {
		if ran := a.host.count(c); ran != 1 {
			t.Errorf("%q ran %d times", c, ran)
		}
	}
}

// No more than window results are on their way.
func TestTheWindowIsBounded(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	free := b.holding("command_completed")
	a := startAgent(t, b, newHost(t), slow)
	b.registered(1)
	for i := range window + 5 {
		b.ask("execute_command", obj{"command_id": fmt.Sprint("c", i), "command": "echo x"})
	}
	for range window + 5 {
		<-a.host.at("/srv/app").reached
	}
	b.wait(window, "results", named("command_completed", ""))
	b.ask("get_shells", obj{}) // what was sent before has come before
	if came := len(b.all(named("command_completed", ""))); came != window {
		t.Errorf("%d are on their way, not %d", came, window)
	}
	free()
	b.wait(window+5, "all results", named("command_completed", ""))
	a.outboxEmpty()
}

// Output goes on while the ack of an earlier piece is on its way, and comes
// again from the first piece that was not acked.
func TestOutputDoesNotWaitForAcks(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	free := b.holding("command_output", "command_completed")
	a := startAgent(t, b, newHost(t), slow)
	b.registered(1)
	const size = 5 << 20
	b.send("execute_command", obj{"command_id": "c", "command": fmt.Sprintf(`out %d "q"`, size)})
	whole := func(list []got) bool {
		n := 0
		for _, g := range list {
			n += len(g.str("output"))
		}
		return n == size
	}
	b.events.Until(t, soon, "all of the output", func() bool { return whole(b.all(named("command_output", "c"))) })
	first := len(b.all(named("command_output", "c")))
	b.srv.Drop()
	b.events.Until(t, soon, "all of it again", func() bool { return whole(b.all(named("command_output", "c"))[first:]) })
	for i, g := range b.all(named("command_output", "c")) {
		if int(g.num("seq")) != i%first {
			t.Fatalf("piece %d has seq %v", i, g.num("seq"))
		}
	}
	free()
	if done := b.one("command_completed", "c"); !done.yes("success") || done.yes("truncated") {
		t.Errorf("completed: %s", done.raw)
	}
	a.outboxEmpty()
}

// A command does not start before its request is on disk: here the disk fails.
func TestWhatCannotBeNotedIsNotRun(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	a := startAgent(t, b, newHost(t))
	b.registered(1)
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0) // takes everything, and cannot be flushed
	if err != nil {
		t.Fatal(err)
	}
	a.journal.mu.Lock()
	real := a.journal.f
	a.journal.f = null
	a.journal.mu.Unlock()
	b.send("execute_command", obj{"command_id": "c", "command": "echo c"})
	b.send("execute_batch_persistent", obj{"batch_id": "b", "commands": []string{"echo b", "echo b"}})
	if done := b.one("command_completed", "c"); done.yes("success") || !done.yes("not_run") || done.str("snapshot_id") != "" {
		t.Errorf("got %s", done.raw)
	}
	if done := b.one("batch_execution_completed", "b"); done.yes("success") {
		t.Errorf("got %s", done.raw)
	}
	if n := a.host.count("echo c") + a.host.count("echo b"); n != 0 {
		t.Errorf("%d ran", n)
	}
	a.stop()
	if err := real.Close(); err != nil {
		t.Error(err)
	}
}

// inLine waits until a lane of the outbox has n events.
func (r *running) inLine(lane string, n int) {
	r.t.Helper()
	timer := time.NewTimer(soon)
	defer timer.Stop()
	for {
		r.outbox.mu.Lock()
		have, wake := len(r.outbox.lanes[lane]), r.outbox.wake
		r.outbox.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-wake:
		case <-timer.C:
			r.t.Fatalf("%d events in line, not %d", have, n)
		}
	}
}
