package agent

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"deployx/socketio"
)

// shown waits until the interactive shell has printed text.
func (b *backend) shown(text string) {
	b.t.Helper()
	var all strings.Builder
	seen := map[string]bool{}
	b.wait(1, text+" on the terminal", func(g got) bool {
		if g.name != "command_output" || !strings.HasPrefix(g.str("command_id"), terminalPrefix) {
			return false
		}
		if piece := fmt.Sprint(g.str("command_id"), g.num("seq")); !seen[piece] {
			seen[piece] = true
			all.WriteString(g.str("output"))
		}
		return strings.Contains(all.String(), text)
	})
}

func TestInteractiveShell(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip(err)
	}
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	if ack := b.ask("start_shell_request", obj{"shell": "cmd"}); ack["shell"] != "bash" || ack["warning"] == "" {
		t.Errorf("start: %v", ack)
	}
	if s := b.one("shell_started", ""); s.str("shell") != "bash" || !s.yes("success") {
		t.Errorf("started: %s", s.raw)
	}
	b.ask("command_input", obj{"command": "echo $((40+2))-$(tty | cut -c1-8)\n"})
	b.shown("42-/dev/pts")
	if g := b.all(named("command_output", ""))[0]; g.str("stream") != "tty" {
		t.Errorf("output %s", g.raw)
	}
	// ^C ends what runs there, and not the shell.
	b.ask("command_input", obj{"command": "echo before; sleep 1000; echo never\n"})
	b.shown("before\r\n")
	for range 100 { // one typed before sleep runs goes to bash, which then starts it
		b.ask("command_input", obj{"command": "\u0003"})
		time.Sleep(50 * time.Millisecond)
		if len(b.all(func(g got) bool { return strings.Contains(g.str("output"), "^C\r\n") })) > 0 {
			break
		}
	}
	b.ask("command_input", obj{"command": "echo still$((1+1))here\n"})
	b.shown("still2here")
	b.ask("command_input", obj{"command": "cls\n"}) // Ctrl+L
	b.shown("\x1b[")
	b.ask("interrupt_signal", obj{})
	if ack := b.ask("get_shells", obj{}); ack["active"] != "bash" {
		t.Errorf("shells: %v", ack)
	}
	b.ask("stop_shell_request", obj{})
	if s := b.one("shell_stopped", ""); s.str("shell") != "bash" {
		t.Errorf("stopped: %s", s.raw)
	}
	// ^D ends a shell by itself.
	b.ask("start_shell_request", obj{})
	b.wait(2, "a second shell", named("shell_started", ""))
	b.ask("command_input", obj{"command": "echo up$((1+1))\n"})
	b.shown("up2")
	for range 100 { // one typed before the prompt is there is lost
		_ = b.socket().Emit(t.Context(), "command_input", obj{"command": "\u0004"})
		if len(b.all(named("shell_stopped", ""))) == 2 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.wait(2, "its end", named("shell_stopped", ""))
	if b.refused("command_failed_to_start", "start_shell_request", obj{"shell": "dash"}) == "" {
		t.Error("a shell that is not installed")
	}
}

func TestInputOfARunningCommand(t *testing.T) {
	b := newBackend(t, socketio.ServerConfig{})
	startAgent(t, b, newHost(t))
	b.registered(1)
	b.ask("execute_command", obj{"command_id": "c", "command": "cat", "stdin": true})
	b.one("command_started", "c")
	b.ask("command_input", obj{"command_id": "c", "data": "hello "})
	b.ask("command_input", obj{"command_id": "c", "data": "there", "eof": true})
	if g := b.one("command_completed", "c"); g.str("output") != "hello there" {
		t.Errorf("got %s", g.raw)
	}
	b.refused("not_found", "command_input", obj{"command_id": "c", "data": "late"})
	b.ask("execute_command", obj{"command_id": "d", "command": "wait"})
	b.one("command_started", "d")
	b.refused("unsupported", "command_input", obj{"command_id": "d", "data": "x"})
	b.ask("command_input", obj{"command": "\u001a"})
	if g := b.one("command_completed", "d"); !g.yes("interrupted") {
		t.Errorf("^Z without a shell: %s", g.raw)
	}
}
