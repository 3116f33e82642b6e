package socketio

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxPollFrames is how many frames go into one POST. Python's engineio takes
// 16 and silently drops the whole payload when there are more
// (engineio/payload.py, max_decode_packets).
const maxPollFrames = 16

// errMoved: the session goes on over another transport.
var errMoved = errors.New("socket.io: the session moved to another transport")

// pollTransport is the client's side of HTTP long-polling
// (engine.io-protocol v4, "HTTP long-polling"): at most one GET and one POST
// at a time.
type pollTransport struct {
	client       *http.Client
	url          string
	header       http.Header
	maxMessage   int64
	maxPayload   int64 // of one POST
	writeTimeout time.Duration
	touch        func()
	cancel       context.CancelFunc // frees the first answer, at abort

	resp *http.Response // the answer that is being read
	body *bufio.Reader
	got  bool // a frame came from body

	mu   sync.Mutex
	rest *rest
}

// rest stops the GETs between two of them.
type rest struct {
	reached chan struct{} // closed by the reader once it is at rest
	over    chan struct{} // closed by the upgrade, whatever came of it
}

func newPollTransport(client *http.Client, url string, header http.Header, cfg *Config) *pollTransport {
	return &pollTransport{
		client: client, url: url, header: header, maxMessage: cfg.MaxMessage,
		maxPayload: defaultMaxPayload, writeTimeout: cfg.WriteTimeout, touch: func() {},
	}
}

func (t *pollTransport) name() string { return Polling }

// open makes the first GET, whose answer starts with the handshake.
func (t *pollTransport) open(ctx context.Context) (frame, error) {
	if err := t.get(ctx); err != nil {
		return frame{}, err
	}
	return t.next()
}

func (t *pollTransport) read(ctx context.Context) (frame, error) {
	for {
		if t.resp == nil {
			if t.pausedAt(ctx) {
				return frame{}, errMoved
			}
			if err := t.get(ctx); err != nil {
				return frame{}, err
			}
		}
		f, err := t.next()
		if !errors.Is(err, io.EOF) {
			return f, err
		}
		if !t.got { // Python ends a session by an empty answer
			return frame{}, errTransportClosed
		}
	}
}

// get asks for more. The answer is read piece by piece, so a server that
// flushes a long queue into one answer costs no memory here.
func (t *pollTransport) get(ctx context.Context) error {
	resp, err := t.do(ctx, http.MethodGet, nil)
	if err != nil {
		return err
	}
	t.resp, t.body, t.got = resp, bufio.NewReaderSize(resp.Body, 4<<10), false
	return nil
}

// do makes one request; the answer's status is 200.
func (t *pollTransport) do(ctx context.Context, method string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, t.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if t.header != nil {
		req.Header = t.header.Clone()
	}
	if body != nil {
		req.Header.Set("Content-Type", "text/plain; charset=UTF-8")
	}
	resp, err := t.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024)) // only for the message
		return nil, errors.Join(newHandshakeError(resp, text, nil), resp.Body.Close())
	}
	return resp, nil
}

// next reads one frame of the answer; io.EOF is its end.
func (t *pollTransport) next() (frame, error) {
	limit := base64.StdEncoding.EncodedLen(int(t.maxMessage)) + 1
	var p []byte
	for {
		piece, err := t.body.ReadSlice(separator)
		p = append(p, piece...)
		t.touch()
		switch {
		case len(p) > limit:
			t.finish()
			return frame{}, fmt.Errorf("read payload: a frame of more than %d bytes (Config.MaxMessage)", t.maxMessage)
		case err == nil:
			return t.parse(p[:len(p)-1])
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			t.finish()
			if len(p) == 0 {
				return frame{}, io.EOF
			}
			return t.parse(p)
		default:
			t.finish()
			return frame{}, fmt.Errorf("read payload: %w", err)
		}
	}
}

func (t *pollTransport) parse(p []byte) (frame, error) {
	t.got = true
	return parsePayloadFrame(p)
}

// finish gives the answer back; only its reader calls it.
func (t *pollTransport) finish() {
	if t.resp != nil {
		_ = t.resp.Body.Close() // everything of use was read
		t.resp = nil
	}
}

func (t *pollTransport) write(ctx context.Context, frames []frame) error {
	var body []byte
	n := 0
	for _, f := range frames {
		full := n == maxPollFrames || int64(len(body)+1+f.payloadLen()) > t.maxPayload
		if n > 0 && full {
			if err := t.post(ctx, body); err != nil {
				return err
			}
			body, n = body[:0], 0
		}
		body = f.appendPayload(body)
		n++
	}
	return t.post(ctx, body)
}

func (t *pollTransport) post(ctx context.Context, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.writeTimeout)
	defer cancel()
	resp, err := t.do(ctx, http.MethodPost, body)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1024)) // "ok"; read, so that the connection is used again
	return errors.Join(err, resp.Body.Close())
}

// pause asks the reader to rest after the GET that is under way.
func (t *pollTransport) pause() *rest {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = &rest{reached: make(chan struct{}), over: make(chan struct{})}
	return t.rest
}

// resume ends a rest.
func (t *pollTransport) resume(r *rest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rest = nil
	close(r.over)
}

// pausedAt rests if it was asked to, and says whether it did.
func (t *pollTransport) pausedAt(ctx context.Context) bool {
	t.mu.Lock()
	r := t.rest
	t.mu.Unlock()
	if r == nil {
		return false
	}
	close(r.reached)
	select {
	case <-r.over:
	case <-ctx.Done():
	}
	return true
}

// close tells the server, unless ctx ends first.
func (t *pollTransport) close(ctx context.Context) {
	_ = t.post(ctx, []byte{frameClose}) // the server may be gone already
}

// abort frees the first answer; other requests end with the context they were
// given.
func (t *pollTransport) abort() { t.cancel() }
