package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"deployx/internal/wire"
	"deployx/snapshot"
)

// Limits of a request. They are far above what a backend sends and far below
// what would hurt.
const (
	maxRequest = 8 << 20 // bytes of JSON
	maxDepth   = 32      // nested objects and arrays
	maxCommand = 1 << 20 // bytes of one command; the kernel takes 128 KiB a word
	maxBatch   = 10_000  // commands
	maxID      = wire.MaxID
	maxEnv     = 1_000 // variables
	maxTimeout = 30 * 24 * time.Hour
)

func badRequest(format string, args ...any) error {
	return &snapshot.Error{Code: snapshot.CodeBadRequest, Msg: fmt.Sprintf(format, args...)}
}

// fields are those of a request's object. The first one that is wrong is kept
// in err; what is read after that is its zero value.
type fields struct {
	raw map[string]json.RawMessage
	err error
}

// decode checks a request: one JSON object, not too large, not too deep, no key
// twice at any depth. What encoding/json would let pass in silence (the last of
// two equal keys, keys in the wrong case) would let a relay and the agent read
// two things from one request. Nothing at all is an empty object.
func decode(args []json.RawMessage) (*fields, error) {
	f := &fields{raw: map[string]json.RawMessage{}}
	if len(args) == 0 || string(args[0]) == "null" {
		return f, nil
	}
	raw := args[0]
	if len(raw) > maxRequest {
		return f, badRequest("the request has %d bytes; at most %d are taken", len(raw), maxRequest)
	}
	if raw = bytes.TrimSpace(raw); len(raw) == 0 || raw[0] != '{' {
		return f, badRequest("the request must be one JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := checkValue(d, 0); err != nil {
		return f, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return f, badRequest("the request must be one JSON object and nothing after it")
	}
	if err := json.Unmarshal(raw, &f.raw); err != nil {
		return f, badRequest("the request does not parse: %v", err)
	}
	return f, nil
}

func checkValue(d *json.Decoder, depth int) error {
	t, err := d.Token()
	if err != nil {
		return badRequest("the request does not parse: %v", err)
	}
	open, ok := t.(json.Delim)
	if !ok {
		return nil
	}
	if depth++; depth > maxDepth {
		return badRequest("the request is nested deeper than %d", maxDepth)
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			if err := checkKey(d, seen); err != nil {
				return err
			}
		}
		if err := checkValue(d, depth); err != nil {
			return err
		}
	}
	_, err = d.Token()
	if err != nil {
		return badRequest("the request does not parse: %v", err)
	}
	return nil
}

func checkKey(d *json.Decoder, seen map[string]bool) error {
	t, err := d.Token()
	if err != nil {
		return badRequest("the request does not parse: %v", err)
	}
	key, _ := t.(string)
	if seen[key] {
		return badRequest("%.40q stands twice in one object", key)
	}
	seen[key] = true
	return nil
}

func (f *fields) wrong(name, expected string) {
	if f.err == nil {
		f.err = badRequest("%s: expected %s", name, expected)
	}
}

// into reads a field; false if it is not there. null is not there: Python
// backends send None for what they do not set.
func (f *fields) into(name string, v any, expected string) bool {
	raw, ok := f.raw[name]
	if !ok || f.err != nil || string(raw) == "null" {
		return false
	}
	if err := json.Unmarshal(raw, v); err != nil {
		f.wrong(name, expected)
		return false
	}
	return true
}

func (f *fields) has(name string) bool {
	raw, ok := f.raw[name]
	return ok && string(raw) != "null"
}

func (f *fields) text(name string, limit int) string {
	var s string
	if f.into(name, &s, "a string") {
		f.check(name, s, limit)
	}
	return s
}

func (f *fields) check(name, s string, limit int) {
	if len(s) > limit {
		f.wrong(name, fmt.Sprintf("at most %d bytes", limit))
	}
	if strings.ContainsRune(s, 0) {
		f.wrong(name, "no NUL byte")
	}
}

// need is text that must be there.
func (f *fields) need(name string, limit int) string {
	s := f.text(name, limit)
	if s == "" {
		f.wrong(name, "a string that is not empty")
	}
	return s
}

// id is a name that a backend gave: data, never part of a path.
func (f *fields) id(name string) string {
	s := f.text(name, maxID)
	if expected := wire.ExpectedOfID(s); expected != "" {
		f.wrong(name, expected)
	}
	return s
}

func (f *fields) flag(name string, otherwise bool) bool {
	f.into(name, &otherwise, "true or false")
	return otherwise
}

func (f *fields) number(name string, otherwise, least, most float64) float64 {
	v := otherwise
	if f.into(name, &v, "a number") && (v < least || v > most || math.IsNaN(v)) {
		f.wrong(name, fmt.Sprintf("a number from %g to %g", least, most))
		return otherwise
	}
	return v
}

func (f *fields) seconds(name string) time.Duration {
	return time.Duration(f.number(name, 0, 0, maxTimeout.Seconds()) * float64(time.Second))
}

func (f *fields) commands(name string) []string {
	var list []string
	if !f.into(name, &list, "an array of strings") || len(list) == 0 || len(list) > maxBatch {
		f.wrong(name, fmt.Sprintf("an array of 1 to %d strings", maxBatch))
	}
	for _, s := range list {
		f.check(name, s, maxCommand)
		if s == "" {
			f.wrong(name, "strings that are not empty")
		}
	}
	return list
}

// env reads an object of strings as "K=V".
func (f *fields) env(name string) []string {
	var m map[string]string
	if !f.into(name, &m, "an object of strings") {
		return nil
	}
	if len(m) > maxEnv {
		f.wrong(name, fmt.Sprintf("at most %d variables", maxEnv))
	}
	var env []string
	for k, v := range m {
		f.check(name, v, maxCommand)
		if !isName(k) {
			f.wrong(name, "names of letters, digits and _ that do not begin with a digit")
		}
		env = append(env, k+"="+v)
	}
	return env
}

func isName(s string) bool {
	for i, r := range s {
		letter := r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if !letter && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}
