package agent

import (
	"slices"
	"strconv"

	"deployx/internal/wire"
)

// event is a chunk as it goes out.
func (s *stream) event(c chunk, text []byte) (string, any) {
	if s.legacy {
		return "deployment_command_output", outputEvent{stream: s, text: text}
	}
	return "command_output", outputEvent{s, c, text}
}

// outputEvent is wire.AgentOutput or wire.DeploymentOutput as a stream sends it:
// the text is encoded where it is to go out, and once.
type outputEvent struct {
	stream *stream
	chunk
	text []byte
}

// AppendJSON is socketio.Appender's.
func (o outputEvent) AppendJSON(b []byte) []byte {
	s := o.stream
	b = slices.Grow(b, len(o.text)+len(o.text)/16+512)
	b = appendField(append(b, '{'), "agent_id", s.agentID)
	b = appendField(append(b, ','), "command_id", s.id)
	if s.batch != "" {
		b = appendField(append(b, ','), "batch_id", s.batch)
	}
	if s.index != nil && !s.legacy {
		b = strconv.AppendInt(append(b, `,"command_index":`...), int64(*s.index), 10)
	}
	if !s.legacy {
		b = appendField(append(b, ','), "stream", o.chunk.stream)
	}
	b = wire.AppendText(append(b, `,"output":`...), o.text)
	if !s.legacy {
		b = strconv.AppendInt(append(b, `,"seq":`...), int64(o.seq), 10)
	}
	return append(b, '}')
}

func appendField(b []byte, name, value string) []byte {
	b = append(append(append(b, '"'), name...), '"', ':')
	return wire.AppendText(b, []byte(value))
}
