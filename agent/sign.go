package agent

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// signatureAge is how far the time of a signed request may be from ours.
const signatureAge = 5 * time.Minute

// minRequestID keeps two backends from choosing the same request_id.
const minRequestID = 16

// signers are the public keys whose requests are carried out.
type signers []ed25519.PublicKey

// readSigners reads public keys as `openssl pkey -pubout` writes them: PEM,
// one or more.
func readSigners(b []byte) (signers, error) {
	var keys signers
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil {
			return nil, errors.New("not PEM: write it with openssl pkey -pubout")
		}
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("it holds a %q: only PUBLIC KEY belongs here, the private one stays with whoever signs", block.Type)
		}
		k, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		ed, ok := k.(ed25519.PublicKey)
		if !ok {
			return nil, errors.New("it holds a key that is not ed25519: make one with openssl genpkey -algorithm ed25519")
		}
		keys, b = append(keys, ed), rest
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no key")
	}
	return keys, nil
}

func unauthorized(format string, args ...any) error {
	return fail(codeUnauthorized, fmt.Sprintf(format, args...), "docs/protocol.md tells how to sign")
}

// verify checks the signature of a request. It returns the request's id, which
// may be used once, and its time.
func (ks signers) verify(agentID, event string, f *fields, now time.Time) (id string, err error) {
	sig, err := base64.StdEncoding.DecodeString(f.text("signature", 128))
	id = f.id("request_id")
	at := time.Unix(int64(f.number("signed_at", 0, 0, 1<<40)), 0)
	switch {
	case f.err != nil:
		return "", f.err
	case !f.has("signature"):
		return "", unauthorized("the request is not signed")
	case err != nil || len(sig) != ed25519.SignatureSize:
		return "", unauthorized("signature: expected the base64 of %d bytes", ed25519.SignatureSize)
	case len(id) < minRequestID:
		return "", unauthorized("request_id: expected at least %d characters that were never used before", minRequestID)
	case now.Sub(at).Abs() > signatureAge:
		return "", unauthorized("signed_at is %s away from the agent's clock; at most %s are allowed", now.Sub(at).Abs().Round(time.Second), signatureAge)
	}
	message, err := signedMessage(agentID, event, f.raw)
	if err != nil {
		return "", err
	}
	for _, k := range ks {
		if ed25519.Verify(k, message, sig) {
			return id, nil
		}
	}
	return "", unauthorized("the signature does not fit the request")
}

// signedMessage is what is signed: a line for the version, the event's name and
// the agent it is meant for, then the request without its signature in
// canonical form.
func signedMessage(agentID, event string, object map[string]json.RawMessage) ([]byte, error) {
	b := []byte("deployx-signature-1\n" + event + "\n" + agentID + "\n")
	unsigned := maps.Clone(object)
	delete(unsigned, "signature")
	return appendObject(b, unsigned)
}

// canonical form: JSON without white space, the keys of an object in the order
// of their code points, strings escaped as JSON.stringify does (RFC 8785
// section 3.2.2.2), numbers only whole ones up to 2^53 as decimal digits, for
// other numbers look different in every language.
func appendCanonical(b []byte, raw json.RawMessage) ([]byte, error) {
	switch raw = bytes.TrimSpace(raw); {
	case len(raw) == 0:
		return nil, badRequest("the request does not parse")
	case raw[0] == '{':
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, badRequest("the request does not parse: %v", err)
		}
		return appendObject(b, m)
	case raw[0] == '[':
		return appendArray(b, raw)
	case raw[0] == '"':
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return nil, badRequest("the request does not parse: %v", err)
		}
		return appendString(b, s), nil
	case raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9':
		return appendNumber(b, raw)
	}
	return append(b, raw...), nil // true, false, null
}

func appendObject(b []byte, m map[string]json.RawMessage) ([]byte, error) {
	b = append(b, '{')
	var err error
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, k), ':')
		if b, err = appendCanonical(b, m[k]); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendArray(b []byte, raw json.RawMessage) ([]byte, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, badRequest("the request does not parse: %v", err)
	}
	b = append(b, '[')
	var err error
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendCanonical(b, v); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

// appendNumber takes whole numbers that every language has exactly.
func appendNumber(b []byte, raw json.RawMessage) ([]byte, error) {
	digits := strings.TrimPrefix(string(raw), "-")
	const most = "9007199254740991" // 2^53-1
	whole := strings.Trim(digits, "0123456789") == "" && string(raw) != "-0"
	if !whole || len(digits) > len(most) || len(digits) == len(most) && digits > most {
		return nil, badRequest("%.30s: a signed request has only whole numbers up to 2^53", raw)
	}
	return append(b, raw...), nil
}

func appendString(b []byte, s string) []byte {
	short := map[rune]string{'"': `\"`, '\\': `\\`, '\b': `\b`, '\f': `\f`, '\n': `\n`, '\r': `\r`, '\t': `\t`}
	b = append(b, '"')
	for _, r := range s {
		switch {
		case short[r] != "":
			b = append(b, short[r]...)
		case r < ' ':
			b = fmt.Appendf(b, `\u%04x`, r)
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}
