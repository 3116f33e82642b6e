package socketio

import (
	"encoding/base64"
	"errors"
	"fmt"
)

// Engine.IO packet types (engine.io-protocol v4, "Protocol").
const (
	frameOpen    = '0'
	frameClose   = '1'
	framePing    = '2'
	framePong    = '3'
	frameMessage = '4'
	frameUpgrade = '5'
	frameNoop    = '6'
)

// separator stands between the packets of a long-polling payload.
const separator = 0x1e

// frame is one Engine.IO packet as WebSocket carries it: text starts with the
// type, binary is the bare bytes of a message.
type frame struct {
	data   []byte
	binary bool
}

func textFrame(kind byte, body string) frame {
	return frame{data: append([]byte{kind}, body...)}
}

// kind is the packet type; a binary frame is always a message.
func (f frame) kind() byte {
	if f.binary {
		return frameMessage
	}
	return f.data[0]
}

// body is the frame without its type.
func (f frame) body() []byte {
	if f.binary {
		return f.data
	}
	return f.data[1:]
}

// check says whether a frame that came from the network has a known type.
func (f frame) check() error {
	if f.binary {
		return nil
	}
	if len(f.data) == 0 {
		return errors.New("decode frame: it is empty")
	}
	if f.data[0] < frameOpen || f.data[0] > frameNoop {
		return fmt.Errorf("decode frame: unknown packet type %q", f.data[0])
	}
	return nil
}

// payloadLen is how many bytes the frame takes in a long-polling payload,
// without a separator.
func (f frame) payloadLen() int {
	if f.binary {
		return 1 + base64.StdEncoding.EncodedLen(len(f.data))
	}
	return len(f.data)
}

// appendPayload adds the frame to a long-polling payload: separated from what
// is there, and binary as base64 behind a 'b'.
func (f frame) appendPayload(p []byte) []byte {
	if len(p) > 0 {
		p = append(p, separator)
	}
	if !f.binary {
		return append(p, f.data...)
	}
	return base64.StdEncoding.AppendEncode(append(p, 'b'), f.data)
}

// parsePayloadFrame reads one element of a long-polling payload. The frame may
// share p's memory. With an error it is p as it is, to be shown.
func parsePayloadFrame(p []byte) (frame, error) {
	if len(p) > 0 && p[0] == 'b' {
		data, err := base64.StdEncoding.AppendDecode(nil, p[1:])
		if err != nil {
			return frame{data: p}, fmt.Errorf("decode frame: %w", err)
		}
		return frame{data: data, binary: true}, nil
	}
	f := frame{data: p}
	return f, f.check()
}
