package socketio

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Socket.IO packet types (socket.io-protocol v5, "Exchange protocol").
const (
	packetConnect      = '0'
	packetDisconnect   = '1'
	packetEvent        = '2'
	packetAck          = '3'
	packetConnectError = '4'
	packetBinaryEvent  = '5'
	packetBinaryAck    = '6'
)

const (
	// MaxAttachments is how many binary attachments a packet may have. Node's
	// parser drops a connection that sends more; Python's takes one digit more.
	MaxAttachments = 10

	// maxIDDigits keeps an acknowledgement id inside a uint64.
	maxIDDigits = 19
)

// packet is one Socket.IO packet. Binary events and acks carry the plain type
// and their attachments.
type packet struct {
	kind        byte
	namespace   string
	id          uint64
	hasID       bool
	data        json.RawMessage   // JSON, or nil
	args        []json.RawMessage // the elements of data, for events and acks
	attachments [][]byte
}

// decoder puts packets together from frames. The zero value is ready; it is
// for one reader.
type decoder struct {
	partial *packet
	missing int
}

// add takes the next message frame and returns the packet that it completes,
// or nil if attachments are still to come. After an error the stream cannot be
// understood any more: the connection has to end (socket.io-protocol v5,
// "Sending and receiving data").
func (d *decoder) add(f frame) (*packet, error) {
	if f.binary {
		return d.attach(f.data)
	}
	if d.partial != nil {
		return nil, fmt.Errorf("decode packet: text came where %d attachments are missing", d.missing)
	}
	p, n, err := parsePacket(f.body())
	if err != nil {
		return nil, fmt.Errorf("decode packet: %w", err)
	}
	if n > 0 {
		d.partial, d.missing = p, n
		return nil, nil
	}
	return p, nil
}

func (d *decoder) attach(data []byte) (*packet, error) {
	if d.partial == nil {
		return nil, errors.New("decode packet: an attachment came without its packet")
	}
	p := d.partial
	p.attachments = append(p.attachments, data)
	if d.missing--; d.missing > 0 {
		return nil, nil
	}
	d.partial = nil
	return p, nil
}

// parsePacket reads the text part of a packet and says how many attachments
// follow. Format (socket.io-protocol v5, "Packet encoding"):
//
//	<type>[<attachments>-][<namespace>,][<ack id>][<JSON>]
func parsePacket(s []byte) (*packet, int, error) {
	if len(s) == 0 || s[0] < packetConnect || s[0] > packetBinaryAck {
		return nil, 0, fmt.Errorf("unknown packet type in %q", clip(s))
	}
	p := &packet{kind: s[0], namespace: "/"}
	s = s[1:]
	attachments := 0
	if p.kind == packetBinaryEvent || p.kind == packetBinaryAck {
		n, rest, err := parseAttachments(s)
		if err != nil {
			return nil, 0, err
		}
		attachments, s = n, rest
		p.kind -= packetBinaryEvent - packetEvent
	}
	if len(s) > 0 && s[0] == '/' {
		name, rest, _ := bytes.Cut(s, []byte{','})
		p.namespace, s = string(name), rest
	}
	s, err := p.parseID(s)
	if err != nil {
		return nil, 0, err
	}
	if len(s) > 0 {
		p.data = s
	}
	return p, attachments, p.checkData()
}

func parseAttachments(s []byte) (int, []byte, error) {
	digits, rest, found := bytes.Cut(s, []byte{'-'})
	if !found || len(digits) == 0 || len(digits) > 2 {
		return 0, nil, fmt.Errorf("no number of attachments in %q", clip(s))
	}
	n := 0
	for _, c := range digits {
		if c < '0' || c > '9' {
			return 0, nil, fmt.Errorf("no number of attachments in %q", clip(s))
		}
		n = n*10 + int(c-'0')
	}
	if n > MaxAttachments {
		return 0, nil, fmt.Errorf("%d attachments, %d are allowed", n, MaxAttachments)
	}
	return n, rest, nil
}

func (p *packet) parseID(s []byte) ([]byte, error) {
	n := 0
	for n < len(s) && s[n] >= '0' && s[n] <= '9' {
		n++
	}
	if n == 0 {
		return s, nil
	}
	if n > maxIDDigits {
		return nil, fmt.Errorf("ack id of %d digits, %d are allowed", n, maxIDDigits)
	}
	id, err := strconv.ParseUint(string(s[:n]), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("ack id: %w", err)
	}
	p.id, p.hasID = id, true
	return s[n:], nil
}

// checkData holds the payload against what its type allows, and splits that
// of events and acks.
func (p *packet) checkData() error {
	first := byte(0)
	if t := bytes.TrimLeft(p.data, " \t\r\n"); len(t) > 0 {
		first = t[0]
	}
	ok := true
	switch p.kind {
	case packetConnect:
		ok = first == 0 || first == '{'
	case packetDisconnect:
		ok = first == 0 || first == '[' || first == '"' || first == '{' // Python gives a reason
	case packetConnectError:
		ok = first != 0
	case packetEvent:
		ok = first == '['
	case packetAck:
		ok = first == '[' && p.hasID
	}
	if !ok {
		return fmt.Errorf("payload %q does not fit packet type %q", clip(p.data), p.kind)
	}
	if p.kind == packetEvent || p.kind == packetAck {
		var err error
		p.args, err = splitArray(p.data)
		return err
	}
	if p.data != nil && !json.Valid(p.data) {
		return fmt.Errorf("payload %q is not JSON", clip(p.data))
	}
	return nil
}

// clip shortens what the other side sent for an error.
func clip(p []byte) []byte {
	const most = 64
	if len(p) > most {
		return append(bytes.Clone(p[:most]), "…"...)
	}
	return p
}
