package socketio

import (
	"strings"
	"testing"
)

func TestSuiteConnect(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	for _, v := range []struct{ connect, answer, auth string }{
		{"40", "40{", `42["auth",{}]`},
		{`40{"token":"123"}`, "40{", `42["auth",{"token":"123"}]`},
		{"40/custom,", "40/custom,{", `42/custom,["auth",{}]`},
		{"40/custom", "40/custom,{", `42/custom,["auth",{}]`},
		{`40/custom,{"token":"abc"}`, "40/custom,{", `42/custom,["auth",{"token":"abc"}]`},
	} {
		w := b.ws()
		w.send(v.connect)
		if f := w.next(); !strings.HasPrefix(string(f.data), v.answer+`"sid":"`) {
			t.Errorf("%s: got %q", v.connect, f.data)
		}
		w.expect(v.auth)
	}
	w := b.ws()
	w.send("40/random")
	w.expect(`44/random,{"message":"Invalid namespace"}`)
}

func TestSuiteBadConnect(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	for _, first := range []string{"4abc", `42["message"]`, "4", `40[]`, `44"x"`} {
		w := b.ws()
		w.send(first)
		w.closed()
	}
	w := b.joined()
	w.send("40")
	w.closed()
}

func TestSuiteNoConnect(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{ConnectTimeout: hasty.ConnectTimeout})
	b.ws().closed()
}

func TestSuiteDisconnect(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	w := b.joined()
	w.send("41")
	w.send("40") // the session goes on
	w.next()
	w.expect(`42["auth",{}]`)
	w = b.joined()
	w.send("40/custom")
	w.next()
	w.expect(`42/custom,["auth",{}]`)
	w.send("41/custom", `42["message","to main"]`)
	w.expect(`42["message-back","to main"]`)
	w.send(`42/custom,["message"]`) // it has left
	w.closed()
}

func TestSuiteMessages(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	w := b.joined()
	w.send(`42["message",1,"2",{"3":[true]}]`)
	w.expect(`42["message-back",1,"2",{"3":[true]}]`)
	const two = `{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]`
	w.send(`452-["message",` + two)
	w.sendBinary(1, 2, 3)
	w.sendBinary(4, 5, 6)
	w.expect(`452-["message-back",` + two)
	w.expectBinary(1, 2, 3)
	w.expectBinary(4, 5, 6)
	w.send(`42456["message-with-ack",1,"2",{"3":[false]}]`)
	w.expect(`43456[1,"2",{"3":[false]}]`)
	w.send(`452-789["message-with-ack",` + two)
	w.sendBinary(1, 2, 3)
	w.sendBinary(4, 5, 6)
	w.expect(`462-789[` + two)
	w.expectBinary(1, 2, 3)
	w.expectBinary(4, 5, 6)
	w.send(`42["unknown event"]`, `42["message","still here"]`)
	w.expect(`42["message-back","still here"]`)
}

func TestSuiteInvalidMessages(t *testing.T) {
	_, b := suiteServer(t, ServerConfig{})
	for _, bad := range []string{
		"4abc", "42{}", `42abc["message-with-ack",1]`, `42["connect"]`, "42[]", `43["no id"]`, `44"x"`,
		`451-["message",{"_placeholder":true,"num":0}]` + "", "0", "2", "5",
	} {
		w := b.joined()
		w.send(bad)
		if strings.HasPrefix(bad, "451") {
			w.send(`42["message"]`) // text in the place of the attachment
		}
		w.closed()
	}
}
