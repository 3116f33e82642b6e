package shell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// streams are one command's open files, and the redirections that name them.
type streams struct {
	redirect string
	pumps    []*pump // outputs
	inputs   []*feed
	pipes    []*pipe
	after    []func() // run once the command ended
	tty      *terminal
}

// open prepares c's streams. On error nothing is left open.
func (s *Shell) open(c Command) (_ *streams, err error) {
	st := &streams{}
	defer func() {
		if err != nil {
			err = errors.Join(err, st.abort())
		}
	}()
	if c.TTY != nil {
		return st, st.openTTY(s, c)
	}
	if err := st.input(s.wires, c.Stdin); err != nil {
		return st, fmt.Errorf("open stdin: %w", err)
	}
	if err := st.output(s.wires, Stdout, c.Stdout); err != nil {
		return st, fmt.Errorf("open stdout: %w", err)
	}
	if same(c.Stdout, c.Stderr) {
		st.redirect += " 2>&1"
		return st, nil
	}
	if err := st.output(s.wires, Stderr, c.Stderr); err != nil {
		return st, fmt.Errorf("open stderr: %w", err)
	}
	return st, nil
}

// same tells whether both outputs are one; some writers cannot be compared.
func same(a, b io.Writer) (same bool) {
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a != nil && a == b
}

func (st *streams) input(w *wires, r io.Reader) error {
	if r == nil {
		st.redirect += " </dev/null"
		return nil
	}
	if f, ok := r.(*os.File); ok {
		if path, ok := w.handOver(f, false); ok {
			st.redirect += " <" + quote(path)
			return nil
		}
	}
	p, err := w.pipe(false)
	if err != nil {
		return err
	}
	st.redirect += " <" + quote(p.path)
	st.pipes = append(st.pipes, p)
	st.inputs = append(st.inputs, (&feed{w: p.w, wait: p.opened}).start(r, "", func() {}))
	return nil
}

func (st *streams) output(w *wires, stream Stream, out io.Writer) error {
	fd := map[Stream]string{Stdout: "", Stderr: "2"}[stream]
	if out == nil {
		st.redirect += " " + fd + ">|/dev/null"
		return nil
	}
	if f, ok := out.(*os.File); ok {
		if path, ok := w.handOver(f, true); ok {
			st.redirect += " " + fd + ">>" + quote(path)
			st.after = append(st.after, func() { seekEnd(f) })
			return nil
		}
	}
	p, err := w.pipe(true)
	if err != nil {
		return err
	}
	p.grow()
	st.redirect += " " + fd + ">|" + quote(p.path)
	st.pipes = append(st.pipes, p)
	st.pumps = append(st.pumps, startPump(stream, p.r, out))
	return nil
}

// handOver is the path under which the shell can open f itself with the same
// effect as inheriting it. A regular file's offset is not shared that way, so
// only a file read from its start or appended to will do.
func (w *wires) handOver(f *os.File, out bool) (path string, ok bool) {
	raw, err := f.SyscallConn()
	if err != nil || w.dir != "" {
		return "", false
	}
	raw.Control(func(fd uintptr) {
		path = procPath(int(fd))
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) != nil {
			return
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO, unix.S_IFCHR:
			ok = true
		case unix.S_IFREG:
			at, err := unix.Seek(int(fd), 0, io.SeekCurrent)
			flags, err2 := unix.FcntlInt(fd, unix.F_GETFL, 0)
			ok = err == nil && err2 == nil && (!out && at == 0 || out && (at == st.Size || flags&unix.O_APPEND != 0))
		}
	})
	return path, ok
}

// seekEnd puts the caller's own offset where an inherited one would be.
func seekEnd(f *os.File) {
	if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
		f.Seek(0, io.SeekEnd) // cannot fail on a regular file
	}
}

// finish closes the owner's ends, delivers what the command wrote, and leaves
// what jobs still write to Late. It tells whether there are any that can.
func (st *streams) finish(s *Shell, c Command, drain time.Duration) (held bool) {
	st.stopInputs()
	if st.tty != nil {
		st.giveBack(s, c.TTY)
		st.tty.leave(s)
	}
	for _, p := range st.pipes {
		p.unlink()
		closeTheirs(p, st.pumps)
	}
	grace, stop := context.WithTimeout(context.Background(), drain)
	defer stop()
	for _, p := range st.pumps {
		if !p.drain(grace.Done(), c.Late) {
			held = true
			s.keepLate(p, c.Orphan)
		}
	}
	for _, f := range st.after {
		f()
	}
	return held
}

// giveBack is TTY.Unread: what the terminal has, and what did not get there.
func (st *streams) giveBack(s *Shell, tty *TTY) {
	if tty.Unread == nil || s.account != nil {
		return
	}
	text := st.tty.unread()
	for _, in := range st.inputs {
		text = append(text, in.left...)
	}
	if len(text) > 0 {
		tty.Unread(text)
	}
}

func (st *streams) stopInputs() {
	if st.tty != nil {
		st.tty.over()
	}
	for _, in := range st.inputs {
		in.stop()
	}
}

// closeTheirs closes the end that the shell opened, and an input's other end.
func closeTheirs(p *pipe, pumps []*pump) {
	for _, out := range pumps {
		if out.r == p.r {
			p.w.Close()
			if p.opened != nil {
				p.opened.Close()
			}
			return
		}
	}
	p.close()
}

// abort undoes open.
func (st *streams) abort() error {
	var errs []error
	st.stopInputs()
	if st.tty != nil {
		st.tty.close()
	}
	for _, p := range st.pipes {
		errs = append(errs, p.close())
	}
	for _, p := range st.pumps {
		p.end()
	}
	return errors.Join(errs...)
}

// keepLate lets p go on after its command, and then to orphan, which may be nil.
func (s *Shell) keepLate(p *pump, orphan func(Stream, *os.File)) {
	s.mu.Lock()
	s.lates[p] = orphan
	s.mu.Unlock()
	s.late.Go(func() {
		<-p.done
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.lates, p)
	})
}

// endLate ends all pumps that outlived their commands. On error a stream was closed
// that should have been handed over.
func (s *Shell) endLate() error {
	s.mu.Lock()
	all := maps.Clone(s.lates)
	parked := s.parked
	s.parked = nil
	s.mu.Unlock()
	var errs []error
	for p, orphan := range all {
		errs = append(errs, p.handOver(orphan))
	}
	s.late.Wait()
	for _, f := range parked {
		f.Close()
	}
	return errors.Join(errs...)
}

// handOver ends the pump and gives a stream that has not ended to orphan, with what
// is in it. There is a reader at every moment, or a job would die of SIGPIPE.
func (p *pump) handOver(orphan func(Stream, *os.File)) error {
	if orphan == nil {
		p.end()
		return nil
	}
	f, err := dup(p.r)
	p.end()
	if err == nil {
		orphan(p.stream, f)
	}
	if errors.Is(err, os.ErrClosed) { // it has ended
		return nil
	}
	return err
}

// pump copies one output to its writer, with one buffer, so that a slow writer
// slows the command.
type pump struct {
	stream Stream
	r      *os.File
	done   chan struct{} // closed by copy: the stream ended or the writer failed
	moved  chan struct{} // a token after each chunk

	mu    sync.Mutex // guards the fields below; not held while writing
	out   io.Writer
	late  func(Stream, []byte)
	busy  bool  // a chunk is on its way to out
	taken int64 // bytes read from the stream
	seen  int64 // bytes delivered
}

// pumpBuffer is large enough that a wake-up costs little beside the copy.
const pumpBuffer = 256 << 10

// pumpBuffers spares each command half a megabyte to allocate.
var pumpBuffers = sync.Pool{New: func() any { return new([pumpBuffer]byte) }}

func startPump(stream Stream, r *os.File, out io.Writer) *pump {
	p := &pump{stream: stream, r: r, out: out, done: make(chan struct{}), moved: make(chan struct{}, 1)}
	go p.copy()
	return p
}

func (p *pump) copy() {
	defer close(p.done)
	defer p.r.Close()
	buf := pumpBuffers.Get().(*[pumpBuffer]byte) //nolint:errcheck // it holds nothing else
	defer pumpBuffers.Put(buf)
	for {
		n := p.take(buf[:])
		if n <= 0 || p.deliver(buf[:n]) != nil {
			return
		}
	}
}

// take reads a chunk and counts it in one step, so that backlog misses none.
func (p *pump) take(buf []byte) (n int) {
	raw, err := p.r.SyscallConn()
	if err != nil {
		return 0
	}
	err = raw.Read(func(fd uintptr) bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for {
			n, err = unix.Read(int(fd), buf)
			if err != unix.EINTR {
				break
			}
		}
		p.taken += int64(max(n, 0))
		return err != unix.EAGAIN
	})
	if err != nil {
		return 0
	}
	return n
}

// deliver hands a chunk to whom it belongs.
func (p *pump) deliver(chunk []byte) (err error) {
	p.mu.Lock()
	out, late := p.out, p.late
	p.busy = true
	p.mu.Unlock()
	switch {
	case out != nil:
		_, err = out.Write(chunk)
	case late != nil:
		late(p.stream, chunk)
	}
	p.mu.Lock()
	p.busy = false
	p.seen += int64(len(chunk))
	p.mu.Unlock()
	select {
	case p.moved <- struct{}{}:
	default:
	}
	return err
}

// backlog is the count of bytes delivered once everything that is in the stream
// now is.
func (p *pump) backlog() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	if raw, err := p.r.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return p.taken + int64(n)
}

// drain waits until the stream ended, or until all that was in it is delivered
// and grace passed; what comes then goes to late. It tells whether the stream ended.
func (p *pump) drain(grace <-chan struct{}, late func(Stream, []byte)) bool {
	want, passed := p.backlog(), false
	for {
		select {
		case <-p.done:
			return true
		case <-p.moved:
		case <-grace:
			passed, grace = true, nil
		}
		if passed && p.redirect(want, late) {
			return false
		}
	}
}

// redirect sends what comes from now on to late, unless the writer is still owed
// something.
func (p *pump) redirect(want int64, late func(Stream, []byte)) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy || p.seen < want {
		return false
	}
	p.out, p.late = nil, late
	return true
}

// end stops the pump and waits for it.
func (p *pump) end() {
	p.r.Close()
	<-p.done
}
