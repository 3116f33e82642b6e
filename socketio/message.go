package socketio

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Message is what came with an event or an acknowledgement.
type Message struct {
	// Args are the arguments, each one JSON as it stood on the wire, so that
	// numbers keep their digits. Binary arguments, and binary parts of an
	// argument, stand as placeholders: see [Message.Attachment].
	Args []json.RawMessage

	// Attachments are the binary parts, at most [MaxAttachments].
	Attachments [][]byte
}

// Arg is argument i, or nil if there are fewer.
func (m Message) Arg(i int) json.RawMessage {
	if i < 0 || i >= len(m.Args) {
		return nil
	}
	return m.Args[i]
}

// Attachment resolves a placeholder, which is what JSON holds in the place of
// binary data. It is an error if arg is something else or names an attachment
// that is not there.
func (m Message) Attachment(arg json.RawMessage) ([]byte, error) {
	var p struct {
		Placeholder bool `json:"_placeholder"`
		Num         *int `json:"num"`
	}
	if err := json.Unmarshal(arg, &p); err != nil {
		return nil, fmt.Errorf("read placeholder: %w", err)
	}
	if !p.Placeholder || p.Num == nil {
		return nil, errors.New("read placeholder: the argument is not binary")
	}
	if *p.Num < 0 || *p.Num >= len(m.Attachments) {
		return nil, fmt.Errorf("read placeholder: attachment %d of %d", *p.Num, len(m.Attachments))
	}
	return m.Attachments[*p.Num], nil
}

// Event is one event from the other side.
type Event struct {
	Name string
	Message

	port  *port
	id    uint64
	asked bool
	acked onceFlag
}

// WantsAck tells whether the sender asked for an acknowledgement.
func (e *Event) WantsAck() bool { return e.asked }

// parseEvent splits an event packet. The name may be a number (Node allows
// it); it is then its digits.
func parseEvent(p *packet) (*Event, error) {
	args := p.args
	if len(args) == 0 {
		return nil, errors.New("decode event: it has no name")
	}
	e := &Event{Message: Message{Args: args[1:], Attachments: p.attachments}, id: p.id, asked: p.hasID}
	switch c := args[0][0]; {
	case c == '"':
		if err := json.Unmarshal(args[0], &e.Name); err != nil {
			return nil, fmt.Errorf("decode event: %w", err)
		}
	case c == '-' || c >= '0' && c <= '9':
		e.Name = string(args[0])
	default:
		return nil, fmt.Errorf("decode event: %q is no name", clip(args[0]))
	}
	return e, nil
}
