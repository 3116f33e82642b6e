package socketio

import (
	"bytes"
	"encoding/json"
	"math"
	"reflect"
	"strings"
	"testing"
)

// Vectors of socket.io-protocol v5, "Packet encoding", "Examples", and of the
// sample session there, in our own spelling.
var packetVectors = []struct {
	name string
	wire string
	bin  [][]byte
	want packet
}{
	{"connect", "0", nil, packet{kind: packetConnect, namespace: "/"}},
	{"connect with auth", `0{"token":"t"}`, nil, packet{kind: packetConnect, namespace: "/", data: raw(`{"token":"t"}`)}},
	{"connect to a namespace", `0/admin,{"sid":"x"}`, nil, packet{kind: packetConnect, namespace: "/admin", data: raw(`{"sid":"x"}`)}},
	{"connect without comma", "0/admin", nil, packet{kind: packetConnect, namespace: "/admin"}},
	{"refused", `4{"message":"no"}`, nil, packet{kind: packetConnectError, namespace: "/", data: raw(`{"message":"no"}`)}},
	{"refused by Python", `4/x,"no"`, nil, packet{kind: packetConnectError, namespace: "/x", data: raw(`"no"`)}},
	{"disconnect", "1", nil, packet{kind: packetDisconnect, namespace: "/"}},
	{"disconnect a namespace", "1/admin,", nil, packet{kind: packetDisconnect, namespace: "/admin"}},
	{"event", `2["hi"]`, nil, packet{kind: packetEvent, namespace: "/", data: raw(`["hi"]`)}},
	{"event in a namespace", `2/admin,["hi"]`, nil, packet{kind: packetEvent, namespace: "/admin", data: raw(`["hi"]`)}},
	{"event with ack", `212["hi"]`, nil, packet{kind: packetEvent, namespace: "/", id: 12, hasID: true, data: raw(`["hi"]`)}},
	{"ack", `3/admin,13["ho"]`, nil, packet{kind: packetAck, namespace: "/admin", id: 13, hasID: true, data: raw(`["ho"]`)}},
	{"empty ack", `30[]`, nil, packet{kind: packetAck, namespace: "/", hasID: true, data: raw(`[]`)}},
	{
		"binary event", `51-["b",{"_placeholder":true,"num":0}]`,
		[][]byte{{1, 2}},
		packet{kind: packetEvent, namespace: "/", data: raw(`["b",{"_placeholder":true,"num":0}]`), attachments: [][]byte{{1, 2}}},
	},
	{
		"two attachments", `52-/admin,["b",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`,
		[][]byte{{1}, {2}},
		packet{
			kind: packetEvent, namespace: "/admin", attachments: [][]byte{{1}, {2}},
			data: raw(`["b",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`),
		},
	},
	{
		"binary ack", `61-15[{"_placeholder":true,"num":0}]`,
		[][]byte{{}},
		packet{kind: packetAck, namespace: "/", id: 15, hasID: true, data: raw(`[{"_placeholder":true,"num":0}]`), attachments: [][]byte{{}}},
	},
	{"binary without attachments", `50-["b"]`, nil, packet{kind: packetEvent, namespace: "/", data: raw(`["b"]`)}},
}

func TestPacketVectors(t *testing.T) {
	for _, v := range packetVectors {
		t.Run(v.name, func(t *testing.T) {
			var d decoder
			p, err := d.add(frame{data: []byte("4" + v.wire)})
			for _, b := range v.bin {
				if err != nil || p != nil {
					t.Fatalf("before its attachments: %+v, %v", p, err)
				}
				p, err = d.add(frame{data: b, binary: true})
			}
			if err != nil {
				t.Fatal(err)
			}
			p.args = nil // TestSplitArray
			if !reflect.DeepEqual(*p, v.want) {
				t.Fatalf("got  %+v\nwant %+v", *p, v.want)
			}
		})
	}
}

func TestPacketsThatAreRefused(t *testing.T) {
	for _, wire := range []string{
		"", "7", "x", "abc", `99["a"]`, // unknown type
		"2", "2{}", `2"a"`, "2null", "2[", `2["a"`, `2["a"]x`, `2["a",]`, // no array
		`2abc["a"]`, `2 ["a"`, `2-1["a"]`, // bad id
		`2` + strings.Repeat("1", 20) + `["a"]`, // id too long
		"3[]", "3", `31{}`,                      // acks
		"0[]", `0"a"`, "0{", // connect
		"1true", "4", // disconnect, refusal
		`5["a"]`, `5-["a"]`, `5x-["a"]`, `5-1-["a"]`, `511-["a"]`, `5999-["a"]`, "51", `51.5-["a"]`, // attachments
	} {
		var d decoder
		if p, err := d.add(frame{data: []byte("4" + wire)}); err == nil {
			t.Errorf("%q was taken for %+v", wire, p)
		}
	}
	var d decoder
	if _, err := d.add(frame{data: []byte{1}, binary: true}); err == nil {
		t.Error("an attachment without a packet was taken")
	}
	if _, err := d.add(frame{data: []byte(`451-["a",1]`)}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.add(frame{data: []byte(`42["a"]`)}); err == nil {
		t.Error("text in the place of an attachment was taken")
	}
	for _, wire := range []string{"[]", "[null]", "[{}]", "[[1]]", "[true]"} {
		args, err := splitArray(raw(wire))
		if err != nil {
			t.Fatal(err)
		}
		if e, err := parseEvent(&packet{args: args}); err == nil {
			t.Errorf("%s was taken for event %q", wire, e.Name)
		}
	}
}

// TestPayloadVectors has the vectors of engine.io-protocol v4, "Packet
// encoding", "HTTP long-polling".
func TestPayloadVectors(t *testing.T) {
	frames := []frame{textFrame('4', "hello"), textFrame('2', ""), textFrame('4', "wörld"), {data: []byte{1, 2, 3, 4}, binary: true}}
	const wire = "4hello\x1e2\x1e4wörld\x1ebAQIDBA=="
	var got []byte
	total := 0
	for _, f := range frames {
		total += f.payloadLen()
		got = f.appendPayload(got)
	}
	if string(got) != wire || total+len(frames)-1 != len(wire) {
		t.Fatalf("got %q, computed %d", got, total)
	}
	for i, p := range bytes.Split([]byte(wire), []byte{separator}) {
		f, err := parsePayloadFrame(p)
		if err != nil || !reflect.DeepEqual(f, frames[i]) {
			t.Errorf("%q: got %+v, %v", p, f, err)
		}
	}
	for _, wire := range []string{"", "7", "x", "b!", "bA"} {
		if _, err := parsePayloadFrame([]byte(wire)); err == nil {
			t.Errorf("%q was taken", wire)
		}
	}
}

func TestHandshakes(t *testing.T) {
	const good = `0{"sid":"s","upgrades":["websocket"],"pingInterval":300,"pingTimeout":200,"maxPayload":1000}`
	h, err := parseHandshake(frame{data: []byte(good)})
	if err != nil || h.patience().Milliseconds() != 500 || h.MaxPayload != 1000 {
		t.Fatalf("got %+v, %v", h, err)
	}
	h, err = parseHandshake(frame{data: []byte(`0{"sid":"s","pingInterval":1,"pingTimeout":1}`)})
	if err != nil || h.MaxPayload != defaultMaxPayload {
		t.Fatalf("got %+v, %v", h, err)
	}
	for _, wire := range []string{
		"", "0", "0{", "0[]", "0null", "4hello", "<html>", "0{}", `0{"sid":"s"}`,
		`0{"sid":"s","pingInterval":-1,"pingTimeout":1}`, `0{"sid":"s","pingInterval":1e300,"pingTimeout":1}`,
		`0{"sid":"s","pingInterval":9000000000000000000,"pingTimeout":9000000000000000000}`,
		`0{"sid":"s","pingInterval":1,"pingTimeout":1,"maxPayload":-1}`, `0{"sid":7,"pingInterval":1,"pingTimeout":1}`,
	} {
		if h, err := parseHandshake(frame{data: []byte(wire)}); err == nil {
			t.Errorf("%q was taken for %+v", wire, h)
		}
	}
}

func TestEncode(t *testing.T) {
	id := uint64(7)
	for _, v := range []struct {
		want string
		id   *uint64
		nsp  string
		args []any
	}{
		{`42["e"]`, nil, "/", nil},
		{`42/admin,7["e",null]`, &id, "/admin", []any{nil}},
		{`42["e","<&> \u001e"]`, nil, "/", []any{"<&> \x1e"}},
		{`42["e",18446744073709551615]`, nil, "/", []any{uint64(math.MaxUint64)}},
		{`42["e",{"n":1.10}]`, nil, "/", []any{raw(`{ "n": 1.10 }`)}},
		{"42[\"e\",\"\uFFFD\"]", nil, "/", []any{raw("\"\xff\"")}},
		{`451-/admin,7["e",{"_placeholder":true,"num":0}]`, &id, "/admin", []any{Binary{1}}},
		{
			`452-["e",{"a":[{"_placeholder":true,"num":0}]},{"_placeholder":true,"num":1}]`, nil, "/",
			[]any{map[string]any{"a": []any{Binary{1}}}, Binary{2}},
		},
	} {
		frames, err := encodeArgs(packetEvent, v.nsp, v.id, "e", v.args)
		if err != nil {
			t.Errorf("%s: %v", v.want, err)
			continue
		}
		if got := string(frames[0].data); got != v.want {
			t.Errorf("got %s, want %s", got, v.want)
		}
	}
	eleven := make([]any, 11)
	for i := range eleven {
		eleven[i] = Binary{}
	}
	for name, args := range map[string][]any{
		"eleven attachments":  eleven,
		"a channel":           {make(chan int)},
		"Binary in a struct":  {struct{ B Binary }{}},
		"JSON that is broken": {raw(`{`)},
		"not a number":        {math.NaN()},
	} {
		if _, err := encodeArgs(packetEvent, "/", nil, "e", args); err == nil {
			t.Errorf("%s was encoded", name)
		}
	}
}

func TestAttachment(t *testing.T) {
	m := Message{Attachments: [][]byte{[]byte("x")}}
	if b, err := m.Attachment(raw(`{"_placeholder":true,"num":0}`)); err != nil || string(b) != "x" {
		t.Fatalf("got %q, %v", b, err)
	}
	for _, arg := range []string{
		`{"_placeholder":true,"num":1}`, `{"_placeholder":true,"num":-1}`, `{"_placeholder":true}`, `{"num":0}`,
		`{"_placeholder":false,"num":0}`, `1`, `null`, `"x"`, ``, `{"_placeholder":true,"num":0.5}`,
	} {
		if _, err := m.Attachment(raw(arg)); err == nil {
			t.Errorf("%s was resolved", arg)
		}
	}
}

func TestConnectErrorShapes(t *testing.T) {
	for wire, want := range map[string]ConnectError{
		`{"message":"no","data":{"a":1}}`: {Message: "no", Data: raw(`{"a":1}`)},
		`{"message":"no"}`:                {Message: "no"},
		`"no"`:                            {Message: "no"},
		`{"code":3}`:                      {Message: `{"code":3}`, Data: raw(`{"code":3}`)},
		`["no",1]`:                        {Message: `["no",1]`, Data: raw(`["no",1]`)},
		`{"message":7}`:                   {Message: `{"message":7}`, Data: raw(`{"message":7}`)},
		`null`:                            {Message: ""},
	} {
		if got := parseConnectError(raw(wire)); !reflect.DeepEqual(*got, want) {
			t.Errorf("%s: got %+v", wire, *got)
		}
	}
}

// sameAsJSON holds splitArray against encoding/json.
func sameAsJSON(t *testing.T, data []byte) {
	t.Helper()
	got, err := splitArray(data)
	var want []json.RawMessage
	wantErr := json.Unmarshal(data, &want)
	if want == nil && wantErr == nil {
		wantErr = errNotJSON // null is no array
	}
	if (err == nil) != (wantErr == nil) || len(got) != len(want) && err == nil {
		t.Fatalf("split %q into %q, %v; want %q, %v", data, got, err, want, wantErr)
	}
	for i := range got {
		if !bytes.Equal(got[i], want[i]) {
			t.Fatalf("split %q into %q, want %q", data, got, want)
		}
	}
}

func TestSplitArray(t *testing.T) {
	for _, data := range []string{
		"[]", " [ ] ", "[1]", `[ "a" , {"b" : [1, "]"]},null , true,false,-0.5e+3]`, `["\\\"",2]`, `["\u12aF\/"]`, "[\"\xff\"]",
		"", "[", "]", "[1", "[1,", "[1,]", "[,1]", "[1 2]", "[1]x", "{}", "null", `[{"a"}]`, `[{"a":}]`, `[{1:2}]`, `[{"a":1,}]`,
		"[01]", "[-]", "[1.]", "[.5]", "[1e]", "[+1]", "[tru]", "[nulls]", `["a]`, `["\x"]`, `["\u12g4"]`, `["\u1"]`, "[\"\n\"]", `["\`,
		"[\x00]", "[1\x00]", strings.Repeat("[", 9999) + strings.Repeat("]", 9999), strings.Repeat("[", 10001) + strings.Repeat("]", 10001),
		strings.Repeat("[", 100_000), strings.Repeat(`[{"a":`, 100_000),
	} {
		sameAsJSON(t, []byte(data))
	}
}

// FuzzPacket feeds the decoder with anything. Arrays must split as encoding/json
// does it, and events encode and decode to the same again.
func FuzzPacket(f *testing.F) {
	for _, v := range packetVectors {
		f.Add([]byte(v.wire), []byte{1})
	}
	f.Add([]byte(`2[ "a\\\"," , [1,{"x":"]"}] , 1e5 ]`), []byte{})
	f.Fuzz(func(t *testing.T, wire, attachment []byte) {
		if i := bytes.IndexByte(wire, '['); i >= 0 {
			sameAsJSON(t, wire[i:])
		}
		var d decoder
		p, err := d.add(frame{data: append([]byte{'4'}, wire...)})
		for range MaxAttachments {
			if err != nil || p != nil {
				break
			}
			p, err = d.add(frame{data: attachment, binary: true})
		}
		if err != nil {
			return
		}
		if p == nil {
			t.Fatal("more attachments are awaited than are allowed")
		}
		if e, err := parseEvent(p); err == nil {
			again(t, e)
		}
	})
}

// again encodes an event and decodes it.
func again(t *testing.T, e *Event) {
	frames, err := encodeArgs(packetEvent, "/", &e.id, e.Name, back(e))
	if err != nil {
		return // more placeholders than attachments may be encoded
	}
	var d decoder
	var p *packet
	for _, f := range frames {
		if p, err = d.add(f); err != nil {
			t.Fatalf("our own %q: %v", f.data, err)
		}
	}
	if e2, err := parseEvent(p); err != nil || len(e2.Args) != len(e.Args) || e2.id != e.id {
		t.Fatalf("%q became %q, %v", e.Args, e2.Args, err)
	}
}

// FuzzPayload feeds the reader of long-polling answers and the handshake.
func FuzzPayload(f *testing.F) {
	f.Add([]byte("4hello\x1e2\x1ebAQIDBA=="))
	f.Add([]byte(`0{"sid":"s","pingInterval":1,"pingTimeout":1}`))
	f.Fuzz(func(t *testing.T, wire []byte) {
		for p := range bytes.SplitSeq(wire, []byte{separator}) {
			fr, err := parsePayloadFrame(p)
			if err != nil {
				continue
			}
			_, _ = parseHandshake(fr) // must not panic
			if fr.payloadLen() != len(fr.appendPayload(nil)) {
				t.Fatalf("%q: payloadLen %d, written %d", p, fr.payloadLen(), len(fr.appendPayload(nil)))
			}
			if fr2, err := parsePayloadFrame(fr.appendPayload(nil)); err != nil || !bytes.Equal(fr2.data, fr.data) {
				t.Fatalf("%q became %q, %v", fr.data, fr2.data, err)
			}
		}
	})
}
