package agent

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"deployx/internal/wire"
	"deployx/socketio"
)

const (
	chunkBytes = 64 << 10
	// unsentBytes is how far a command may run ahead of the connection.
	unsentBytes = 1 << 20
	// probeShare of the spool, or probeChunks, is how much is sent before an ack
	// is asked for, which tells what need not be sent again.
	probeShare, probeChunks = 8, 256
	// repairShare of the spool is what is sent again to a backend that acks no
	// output.
	repairShare = 4
	// progressBytes is how much of a command's output a legacy backend gets as
	// the progress of its batch.
	progressBytes = 64 << 10
)

// stream carries one command's output to the backend.
//
// A backend that is slow makes Write wait, and so the command. Without a
// connection Write never waits: the spool takes what it can and the rest is
// dropped, marked by a gap in seq and by truncated. After a reconnect what was
// not confirmed is sent again with the same seq. Legacy backends append what
// they get, so there nothing is sent twice.
type stream struct {
	link       *link
	agentID    string
	id         string
	batch      string
	index      *int
	command    string
	legacy     bool // deployment_command_output
	mute       bool // nothing is sent: a legacy group execution
	patience   time.Duration
	chunkBytes int

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu        sync.Mutex
	wake      chan struct{} // closed and made anew at a change that is waited for
	awaited   bool          // somebody has wake
	spool     *spool
	running   bool   // the sender
	conn      uint64 // 0 without one
	lost      uint64 // a connection that failed, which the link may not know yet
	sent      int    // of spool.chunks, on conn
	unproved  int64  // bytes sent since the last probe
	unasked   int    // chunks since then
	probing   bool   // an ack is awaited, on conn
	silent    bool   // conn does not ack output
	ended     bool   // nothing more is written
	truncated bool
	rushed    bool
	sending   bool // the last of sent is not in line yet
	progress  int  // bytes sent as progress
	err       error
}

// writer is where the command's output goes.
func (s *stream) writer(name string) io.Writer { return streamWriter{s, name} }

type streamWriter struct {
	s    *stream
	name string
}

// Write never fails: a backend that is gone does not stop a command.
func (w streamWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 && !w.s.mute {
		p = w.s.take(w.name, p)
	}
	return n, nil
}

// take takes a part of p, or waits, or drops it.
func (s *stream) take(name string, p []byte) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.err != nil {
		s.truncated = true
		return nil
	}
	room := s.spool.room()
	connected := (s.conn != 0 || !s.running) && !s.rushed && s.ctx.Err() == nil
	if connected {
		room = min(room, unsentBytes-(s.spool.written-s.spool.cut))
	}
	if room > 0 {
		n := min(int64(len(p)), room)
		if s.err = s.spool.write(name, p[:n]); s.err != nil {
			s.truncated = true
			return nil
		}
		s.start()
		s.signal()
		return p[n:]
	}
	if !connected {
		s.truncated, s.spool.hole = true, true
		return nil
	}
	wake := s.await()
	s.mu.Unlock()
	select {
	case <-wake:
	case <-s.ctx.Done():
	}
	s.mu.Lock()
	return p
}

// rush makes Write never wait again: what the backend does not take in time is
// dropped when the spool is full.
func (s *stream) rush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rushed = true
	s.signal()
}

// start starts the sender with the first output. The caller holds mu.
func (s *stream) start() {
	if !s.running {
		s.running = true
		s.conn, _ = s.link.now()
		s.wg.Go(s.run)
	}
}

// signal tells of a change. Most are not waited for: a command may write
// thousands of times a second. The caller holds mu.
func (s *stream) signal() {
	if s.awaited {
		s.awaited = false
		close(s.wake)
		s.wake = make(chan struct{})
	}
}

// await is for waiting for a change. The caller holds mu.
func (s *stream) await() chan struct{} {
	s.awaited = true
	return s.wake
}

// run sends until the stream is closed.
func (s *stream) run() {
	for s.ctx.Err() == nil {
		conn, changed := s.link.now()
		p, wake := s.step(conn)
		if p.text != nil {
			s.send(conn, p)
			continue
		}
		select {
		case <-s.ctx.Done():
		case <-changed:
		case <-wake:
		}
	}
}

// piece is a chunk to send.
type piece struct {
	chunk
	text  []byte
	probe bool // with an ack
	fresh bool // for the first time
}

// step finds what to send next on a connection; no text if there is nothing.
func (s *stream) step(conn uint64) (p piece, wake chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn == s.lost {
		conn = 0
	}
	if s.conn != conn {
		s.conn, s.sent, s.unproved, s.unasked, s.silent, s.probing = conn, 0, 0, 0, false, false
		s.signal()
	}
	if conn == 0 || s.err != nil {
		return p, s.await()
	}
	if s.sent < len(s.spool.chunks) {
		p.chunk = s.spool.chunks[s.sent]
		p.text, s.err = s.spool.again(p.chunk)
	} else {
		p.fresh = true
		p.chunk, p.text, s.err = s.spool.next(fit(s.link.MaxPayload(), s.chunkBytes), s.ended)
	}
	if p.text == nil || s.err != nil {
		p.text = nil
		s.signal() // flush looks again
		return p, s.await()
	}
	s.sent++
	s.sending = true
	s.unproved += int64(len(p.text))
	s.unasked++
	p.probe = !s.legacy && !s.silent && !s.probing && (s.unproved >= s.spool.capacity/probeShare || s.unasked >= probeChunks)
	if p.probe {
		s.probing, s.unproved, s.unasked = true, 0, 0
	}
	return p, nil
}

// send sends one chunk; a probe with an ack, which another waits for.
func (s *stream) send(conn uint64, p piece) {
	name, payload := s.event(p.chunk, p.text)
	var err error
	var answer func(context.Context) (socketio.Message, error)
	if p.probe {
		answer, err = s.link.Ask(s.ctx, name, payload)
	} else {
		err = s.link.Emit(s.ctx, name, payload)
	}
	if p.fresh && s.index != nil && !s.legacy {
		s.tellProgress(p.text)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sending = false
	switch {
	case err != nil:
		s.lose(conn)
	case s.legacy:
		s.spool.confirm(s.sent)
		s.sent = 0
	case p.probe:
		s.wg.Go(func() { s.prove(conn, p.seq, answer) })
	}
	s.forgetOld()
	s.signal()
}

// lose notes that a connection is gone. The caller holds mu.
func (s *stream) lose(conn uint64) {
	if s.conn == conn {
		s.conn, s.sent = 0, 0
	}
	s.lost = max(s.lost, conn)
}

// prove waits for the ack of the piece seq: it says that the backend has that
// one and all before it. Meanwhile more is sent, as far as the spool can keep
// it.
func (s *stream) prove(conn uint64, seq int, answer func(context.Context) (socketio.Message, error)) {
	ctx, cancel := context.WithTimeout(s.ctx, s.patience)
	defer cancel()
	_, err := answer(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn {
		return
	}
	s.probing = false
	switch {
	case err == nil:
		n := 0
		for n < s.sent && s.spool.chunks[n].seq <= seq {
			n++
		}
		s.spool.confirm(n)
		s.sent -= n
	case errors.Is(err, socketio.ErrAckTimeout) || errors.Is(err, context.DeadlineExceeded):
		s.silent = true
		s.forgetOld()
	default:
		s.lose(conn)
	}
	s.signal()
}

// forgetOld bounds what is kept for a backend that acks nothing. From one that
// acks, nothing is given up: there a full spool makes the command wait.
func (s *stream) forgetOld() {
	n := 0
	for s.silent && n < s.sent && (s.sent-n > maxChunks/2 || s.spool.cut-s.spool.chunks[n].start > s.spool.capacity/repairShare) {
		n++
	}
	if n > 0 {
		s.spool.confirm(n)
		s.sent -= n
	}
}

// tellProgress is for legacy backends: the start of the output of a batch's
// command, a second time.
func (s *stream) tellProgress(text []byte) {
	s.mu.Lock()
	s.progress += len(text)
	over := s.progress > progressBytes
	s.mu.Unlock()
	if !over {
		s.link.tell(s.ctx, "batch_command_progress", wire.BatchProgress{
			AgentID: s.agentID, BatchID: s.batch, Index: *s.index, Command: s.command, Output: string(text), Status: "running",
		})
	}
}

// end says that nothing more will be written.
func (s *stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.signal()
}

// dropped says whether some output was, so far.
func (s *stream) dropped() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.truncated
}

// flush waits until everything was sent on the connection that stands now; an
// error if it is lost meanwhile.
func (s *stream) flush(ctx context.Context) error {
	conn, changed := s.link.now()
	if conn == 0 {
		return socketio.ErrDisconnected
	}
	for {
		idle, wake := s.idle(conn)
		if idle {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
			return socketio.ErrDisconnected
		case <-wake:
		}
	}
}

func (s *stream) idle(conn uint64) (bool, chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sp := s.spool
	all := s.conn == conn && !s.sending && s.sent == len(sp.chunks) && sp.cut == sp.written && !(s.ended && sp.holds())
	return !s.running || s.err != nil || all, s.await()
}

// close ends the sender and gives the spool back.
func (s *stream) close() {
	s.stop()
	s.wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	_ = s.spool.close() // it has no name, and nobody reads it again
}
