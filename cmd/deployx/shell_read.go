package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// read asks for a command, and for more of it as long as bash would.
func (i *interactive) read() (string, error) {
	text, err := i.line(i.prompt())
	for err == nil && unfinished(text) {
		var more string
		if more, err = i.line("> "); err == nil {
			text += "\n" + more
		}
	}
	if errors.Is(err, io.EOF) && text != "" {
		return text, nil // ^D in the middle: the shell says what is missing
	}
	return text, err
}

func (i *interactive) line(prompt string) (string, error) {
	line, err := i.ln.Prompt(prompt)
	if err == nil {
		i.remember(line)
	}
	return line, err
}

// wantsMore are the words with which bash -n says that the text ends too early.
var wantsMore = regexp.MustCompile(`unexpected EOF while looking for|unexpected end of file|here-document .* delimited by end-of-file`)

// checkTime bounds one look of bash at a text. It reads and runs nothing.
const checkTime = 2 * time.Second

// unfinished tells whether a shell would ask for another line. Where there is no
// bash to ask, no text is.
func unfinished(text string) bool {
	if _, _, ok := meta(text); ok {
		return false
	}
	last := text[strings.LastIndexByte(text, '\n')+1:]
	if n := len(last) - len(strings.TrimRight(last, `\`)); n%2 == 1 && !strings.HasPrefix(strings.TrimSpace(last), "#") {
		return true
	}
	ctx, stop := context.WithTimeout(context.Background(), checkTime)
	defer stop()
	c := exec.CommandContext(ctx, "bash", "-O", "extglob", "-n")
	c.Env, c.Dir, c.Stdin = []string{"LC_ALL=C"}, "/", strings.NewReader(text+"\n")
	var told strings.Builder
	c.Stderr = &told
	c.Run() //nolint:errcheck // what it says is what counts
	return wantsMore.MatchString(told.String())
}

// keepHistory is how many lines are remembered from one shell to the next.
const keepHistory = 1000

func (i *interactive) historyFile() string { return filepath.Join(i.tree.Store, "history") }

func (i *interactive) loadHistory() {
	b, err := os.ReadFile(i.historyFile())
	if err != nil {
		return // the first time
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	if len(lines) > 2*keepHistory {
		lines = lines[len(lines)-keepHistory:]
		err := os.WriteFile(i.historyFile(), []byte(strings.Join(lines, "\n")+"\n"), 0o600)
		i.warn("history", err)
	}
	for _, l := range lines {
		i.ln.AppendHistory(l)
	}
}

// remember keeps a line. One that begins with a space is not kept, as with
// bash's ignorespace: a place for secrets.
func (i *interactive) remember(line string) {
	if strings.TrimSpace(line) == "" || line[0] == ' ' {
		return
	}
	i.ln.AppendHistory(line)
	f, err := os.OpenFile(i.historyFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(line + "\n")
		err = errors.Join(err, f.Close())
	}
	i.warn("history", err)
}

func (i *interactive) warn(what string, err error) {
	if err != nil {
		i.app.say("deployx: warning: %s: %v", what, err)
	}
}
