package agent

import (
	"encoding/json"
	"errors"

	"deployx/socketio"
)

// sendFitting calls send with the payload, and if that is larger than the
// backend takes, with less and less of it: the result itself must come through.
func sendFitting(payload json.RawMessage, send func(json.RawMessage) error) error {
	err := send(payload)
	for level := 1; level <= shrunk && errors.Is(err, socketio.ErrTooLarge); level++ {
		err = send(shrink(payload, level))
	}
	return err
}

// shrunk is the last level of shrink; shortText and shortList are what it
// leaves.
const (
	shrunk    = 2
	shortText = 512
	shortList = 50
)

// shrink takes the outputs out of a payload, and at the second level the ends
// of long texts and lists.
func shrink(payload json.RawMessage, level int) json.RawMessage {
	var m map[string]any
	if json.Unmarshal(payload, &m) != nil {
		return payload
	}
	m["output"], m["truncated"] = "", true
	for k, v := range m {
		switch v := v.(type) {
		case string:
			m[k] = shorten(v, level)
		case []any:
			if level > 1 && len(v) > shortList {
				v = v[:shortList]
			}
			for _, r := range v {
				if o, ok := r.(map[string]any); ok {
					delete(o, "output")
					for k, s := range o {
						if s, ok := s.(string); ok {
							o[k] = shorten(s, level)
						}
					}
				}
			}
			m[k] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		return payload
	}
	return b
}

func shorten(s string, level int) string {
	if level > 1 {
		return head(s, shortText)
	}
	return s
}
