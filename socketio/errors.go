package socketio

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

var (
	// ErrDisconnected: there is no connection, or it was lost before the
	// answer came. Whether the other side saw the event is not known.
	ErrDisconnected = errors.New("socket.io: not connected")

	// ErrAckTimeout: the other side did not acknowledge in time. It may have
	// no handler for the event (neither Node nor Python then answers).
	ErrAckTimeout = errors.New("socket.io: no acknowledgement in time")

	// ErrTooLarge: the event is larger than the other side accepts; it would
	// have dropped the connection. Send less at a time.
	ErrTooLarge = errors.New("socket.io: event larger than the other side's maxPayload")

	// ErrServerDisconnect: the other side ended the connection on purpose.
	ErrServerDisconnect = errors.New("socket.io: disconnected by the other side")

	// ErrHeartbeat: nothing came for longer than the heartbeat allows.
	ErrHeartbeat = errors.New("socket.io: heartbeat missed, the other side is gone or frozen")

	// ErrConnectTimeout: the transport opened, but CONNECT was not answered.
	ErrConnectTimeout = errors.New("socket.io: CONNECT not answered in time")

	// ErrClosed: this side closed the connection.
	ErrClosed = errors.New("socket.io: closed")

	// errTransportClosed: the other side closed the transport (Engine.IO
	// packet "close").
	errTransportClosed = errors.New("socket.io: transport closed by the other side")
)

// ConnectError is a CONNECT_ERROR packet: the server refused the namespace.
type ConnectError struct {
	Message string
	Data    json.RawMessage // what the server added, or nil
}

func (e *ConnectError) Error() string {
	return "socket.io: connection refused by the server: " + e.Message
}

// parseConnectError takes both shapes: Node sends an object with message and
// data, Python a bare string or whatever the application raised with.
func parseConnectError(data json.RawMessage) *ConnectError {
	var text string
	if json.Unmarshal(data, &text) == nil {
		return &ConnectError{Message: text}
	}
	var object struct {
		Message *string         `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if json.Unmarshal(data, &object) == nil && object.Message != nil {
		return &ConnectError{Message: *object.Message, Data: object.Data}
	}
	return &ConnectError{Message: string(clip(data)), Data: data}
}

// HandshakeError is an HTTP answer that opens no connection.
type HandshakeError struct {
	Status     int           // HTTP status; 200 if the answer was not Engine.IO
	Body       string        // the answer's first bytes
	RetryAfter time.Duration // the Retry-After header, or 0
	Err        error         // what was wrong with the answer, or nil
}

func (e *HandshakeError) Error() string {
	s := fmt.Sprintf("socket.io: handshake answered %d %s", e.Status, http.StatusText(e.Status))
	if e.Err != nil {
		s = fmt.Sprintf("%s, but %v (is a Socket.IO 3 or 4 server at this URL and path?)", s, e.Err)
	}
	if e.Body != "" {
		s += fmt.Sprintf(": %q", e.Body)
	}
	return s
}

// Unwrap is what was wrong with the answer.
func (e *HandshakeError) Unwrap() error { return e.Err }

// newHandshakeError reads what the answer says; body is cut to its start.
func newHandshakeError(resp *http.Response, body []byte, err error) *HandshakeError {
	return &HandshakeError{
		Status:     resp.StatusCode,
		Body:       string(clip(body)),
		RetryAfter: parseRetryAfter(resp.Header.Get("Retry-After"), time.Now()),
		Err:        err,
	}
}

// parseRetryAfter reads seconds or a date (RFC 9110 section 10.2.3), at most an
// hour; anything else is 0.
func parseRetryAfter(v string, now time.Time) time.Duration {
	const most = time.Hour
	v = strings.TrimSpace(v)
	if n, err := strconv.ParseUint(v, 10, 64); err == nil {
		if n > uint64(most/time.Second) {
			return most
		}
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(t.Sub(now), 0), most)
	}
	return 0
}

// HandlerPanic is a panic of one of the caller's functions. The connection
// goes on; the event of the handler gets no acknowledgement from it.
type HandlerPanic struct {
	Value any
	Stack []byte
}

func (e *HandlerPanic) Error() string {
	return fmt.Sprintf("socket.io: a handler panicked: %v", e.Value)
}
