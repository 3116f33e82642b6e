package session

import (
	"io"
	"sync"

	"deployx/shell"
)

// tailBytes is how much of a command's output is kept with its snapshot.
const tailBytes = 64 << 10

// A tail keeps the end of what is written through it.
type tail struct {
	mu   sync.Mutex
	buf  []byte
	max  int
	lost bool
}

func newTail(max int) *tail { return &tail{max: max} }

func (t *tail) add(p []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) >= t.max {
		t.lost = t.lost || len(p) > t.max || len(t.buf) > 0
		t.buf = append(t.buf[:0], p[len(p)-t.max:]...)
		return
	}
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - 2*t.max; over > 0 { // seldom, so that it is cheap
		t.buf = append(t.buf[:0], t.buf[len(t.buf)-t.max:]...)
		t.lost = true
	}
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.buf) > t.max {
		t.lost = true
		return append([]byte(nil), t.buf[len(t.buf)-t.max:]...)
	}
	return append([]byte(nil), t.buf...)
}

func (t *tail) truncated() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lost || len(t.buf) > t.max
}

type tee struct {
	t *tail
	w io.Writer
}

func (t *tail) tee(w io.Writer) io.Writer { return tee{t, w} }

func (x tee) Write(p []byte) (int, error) {
	x.t.add(p)
	if x.w == nil {
		return len(p), nil
	}
	return x.w.Write(p)
}

func (t *tail) teeTTY(tty *shell.TTY) *shell.TTY {
	if tty == nil {
		return nil
	}
	c := *tty
	c.Out = t.tee(tty.Out)
	return &c
}
