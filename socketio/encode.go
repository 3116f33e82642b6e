package socketio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"unicode/utf8"
)

// Binary is an argument that travels as an attachment, without base64 on
// WebSocket. It works as an argument itself and at any depth of
// map[string]any and []any; anywhere else encoding it is an error.
type Binary []byte

// MarshalJSON always fails: see [Binary].
func (Binary) MarshalJSON() ([]byte, error) {
	return nil, errors.New("a Binary must be an argument, or inside map[string]any or []any")
}

// placeholder is what JSON holds where an attachment goes.
type placeholder struct {
	Placeholder bool `json:"_placeholder"`
	Num         int  `json:"num"`
}

// Appender is an argument that writes its own JSON: appended to b it must be
// one JSON value in UTF-8, which is sent as it is. It is for what is large and
// sent often; other arguments go through encoding/json.
type Appender interface{ AppendJSON(b []byte) []byte }

// encodeArgs makes the frames of an event or an ack: one text frame, and one
// binary frame for each attachment. first is the event's name, or nil.
func encodeArgs(kind byte, namespace string, id *uint64, first any, args []any) ([]frame, error) {
	var attachments [][]byte
	list := make([]any, 0, len(args)+1)
	if first != nil {
		list = append(list, first)
	}
	for _, a := range args {
		list = append(list, detach(a, &attachments))
	}
	if len(attachments) > MaxAttachments {
		return nil, fmt.Errorf("encode packet: %d attachments, %d are allowed; send them in several events", len(attachments), MaxAttachments)
	}
	text, err := appendList(encodeHead(kind, len(attachments), namespace, id), list)
	if err != nil {
		return nil, err
	}
	frames := append(make([]frame, 0, 1+len(attachments)), frame{data: text})
	for _, a := range attachments {
		frames = append(frames, frame{data: a, binary: true})
	}
	return frames, nil
}

// encodeText writes the text part of a packet, its Engine.IO type in front.
// data nil means no payload.
func encodeText(kind byte, attachments int, namespace string, id *uint64, data any) ([]byte, error) {
	b := encodeHead(kind, attachments, namespace, id)
	if data == nil {
		return b, nil
	}
	return appendValue(b, data)
}

// encodeHead is what stands before the payload.
func encodeHead(kind byte, attachments int, namespace string, id *uint64) []byte {
	b := append(make([]byte, 0, 128), frameMessage)
	if attachments > 0 {
		b = append(b, kind+packetBinaryEvent-packetEvent)
		b = append(strconv.AppendInt(b, int64(attachments), 10), '-')
	} else {
		b = append(b, kind)
	}
	if namespace != "/" {
		b = append(append(b, namespace...), ',')
	}
	if id != nil {
		b = strconv.AppendUint(b, *id, 10)
	}
	return b
}

func appendList(b []byte, list []any) (_ []byte, err error) {
	b = append(b, '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(b, v); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func appendValue(b []byte, v any) ([]byte, error) {
	if a, ok := v.(Appender); ok {
		return a.AppendJSON(b), nil
	}
	buf := bytes.NewBuffer(b)
	e := json.NewEncoder(buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, fmt.Errorf("encode packet: %w", err)
	}
	text := buf.Bytes()[:buf.Len()-1] // Encode ends with a newline
	// A json.RawMessage is not checked for UTF-8, and one wrong byte in a text
	// frame makes the peer drop the connection (RFC 6455 section 8.1).
	if !utf8.Valid(text[len(b):]) {
		text = append(text[:len(b):len(b)], bytes.ToValidUTF8(text[len(b):], []byte("\uFFFD"))...)
	}
	return text, nil
}

// detach replaces each Binary in v by its placeholder, in a copy.
func detach(v any, attachments *[][]byte) any {
	switch v := v.(type) {
	case Binary:
		*attachments = append(*attachments, v)
		return placeholder{true, len(*attachments) - 1}
	case map[string]any:
		if v == nil {
			return v
		}
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = detach(e, attachments)
		}
		return m
	case []any:
		if v == nil {
			return v
		}
		s := make([]any, len(v))
		for i, e := range v {
			s[i] = detach(e, attachments)
		}
		return s
	}
	return v
}
