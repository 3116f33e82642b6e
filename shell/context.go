package shell

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Context is a shell's state as plain text: directory, variables, functions,
// aliases, options, umask, positional parameters and $?. Treat it as opaque: only
// Start and Dir read it. Any process may give it to Start, also much later.
// nil is the state of a fresh shell.
//
// The text is a line "deployx-shell-context 1 DIALECT", then sections, each a
// line "@NAME BYTES", that many bytes and a newline.
type Context []byte

const contextMagic = "deployx-shell-context 1 "

var errContext = errors.New("not a shell context of version 1: it is damaged or from a newer deployx")

// Dir is the working directory that the context holds, "" if none.
func (c Context) Dir() string {
	st, err := parseContext(c)
	if err != nil {
		return ""
	}
	return st.dir
}

// state is a context taken apart.
type state struct {
	dialect dialect
	dir     string
	umask   string
	vars    string // declare -p, or export -p
	flags   string // declare -F
	funcs   string // declare -f
	aliases string // alias -p
	args    string // positional parameters, quoted
	oldpwd  string // posix only: bash has it in vars
	ps1     string // posix only
	status  string // $?
	lastArg string // $_
	pipe    string // PIPESTATUS, space-separated
}

// field is a section of the context text and where its value lives.
type field struct {
	name  string
	value *string
}

func (st *state) fields() []field {
	return []field{
		{"dir", &st.dir},
		{"umask", &st.umask},
		{"vars", &st.vars},
		{"flags", &st.flags},
		{"funcs", &st.funcs},
		{"aliases", &st.aliases},
		{"args", &st.args},
		{"oldpwd", &st.oldpwd},
		{"ps1", &st.ps1},
		{"status", &st.status},
		{"lastarg", &st.lastArg},
		{"pipestatus", &st.pipe},
	}
}

func (st *state) encode() Context {
	var b bytes.Buffer
	b.WriteString(contextMagic + st.dialect.String() + "\n")
	for _, f := range st.fields() {
		if *f.value != "" {
			fmt.Fprintf(&b, "@%s %d\n%s\n", f.name, len(*f.value), *f.value)
		}
	}
	return b.Bytes()
}

// parseContext takes a context apart; nil gives an empty state.
func parseContext(c Context) (*state, error) {
	st := &state{}
	if len(c) == 0 {
		return st, nil
	}
	head, rest, ok := strings.Cut(string(c), "\n")
	kind, ok2 := strings.CutPrefix(head, contextMagic)
	if !ok || !ok2 {
		return nil, errContext
	}
	switch kind {
	case bash.String():
	case posix.String():
		st.dialect = posix
	default:
		return nil, errContext
	}
	for rest != "" {
		var err error
		if rest, err = st.section(rest); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// section takes one section off the text. Unknown names are skipped: they can
// only add to what this version knows.
func (st *state) section(text string) (rest string, err error) {
	head, body, ok := strings.Cut(text, "\n")
	name, size, ok2 := strings.Cut(head, " ")
	n, err := strconv.Atoi(size)
	if !ok || !ok2 || err != nil || !strings.HasPrefix(name, "@") || n < 0 || n >= len(body) || body[n] != '\n' {
		return "", errContext
	}
	for _, f := range st.fields() {
		if "@"+f.name == name {
			*f.value = body[:n]
		}
	}
	return body[n+1:], nil
}

// capture reads what post.bash or post.sh wrote.
func capture(d dialect, text []byte) (*state, error) {
	parts := strings.Split(string(text), "\x00")
	st := &state{dialect: d}
	into := []*string{&st.dir, &st.umask, &st.vars, &st.flags, &st.funcs, &st.aliases, &st.args, &st.lastArg, &st.pipe}
	if d == posix {
		into = []*string{&st.dir, &st.umask, &st.vars, &st.oldpwd, &st.ps1}
	}
	if len(parts) != len(into)+1 || parts[len(into)] != "end" {
		return nil, errors.New("shell state is incomplete")
	}
	for i, p := range into {
		*p = parts[i]
	}
	st.dir = strings.TrimSuffix(st.dir, "\n")
	st.umask = strings.TrimSpace(st.umask)
	return st, nil
}

// variable is one statement of declare -p or export -p.
type variable struct {
	name string
	text string
}

// variables splits the output of declare -p, whose values are quoted and may
// hold newlines.
func variables(text string) []variable {
	var vars []variable
	for text != "" {
		end := statement(text)
		stmt := text[:end]
		text = strings.TrimPrefix(text[end:], "\n")
		if name := declared(stmt); name != "" {
			vars = append(vars, variable{name, stmt})
		}
	}
	return vars
}

// statement is the length of the first statement: up to a newline that no quotes hold.
func statement(text string) int {
	var quote byte
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && quote != '\'':
			i++
		case quote == 0 && c == '\n':
			return i
		case quote == 0 && c == '$' && i+1 < len(text) && text[i+1] == '\'':
			quote = '$' // $'...' ends at a quote but takes backslashes
			i++
		case quote == 0 && (c == '\'' || c == '"'):
			quote = c
		case quote == c && quote != '$', quote == '$' && c == '\'':
			quote = 0
		}
	}
	return len(text)
}

// declared is the name that "declare -x NAME=..." or "export NAME=..." declares.
func declared(stmt string) string {
	word, rest, _ := strings.Cut(stmt, " ")
	if word == "declare" {
		_, rest, _ = strings.Cut(rest, " ")
	}
	name, _, _ := strings.Cut(rest, "=")
	return name
}

// find is the statement that declares name, "" if there is none.
func (st *state) find(name string) string {
	vars := variables(st.vars)
	i := slices.IndexFunc(vars, func(v variable) bool { return v.name == name })
	if i < 0 {
		return ""
	}
	return vars[i].text
}

// value is the list that a readonly like SHELLOPTS="a:b" holds.
func (st *state) options(name string) []string {
	_, v, _ := strings.Cut(st.find(name), "=")
	return strings.FieldsFunc(v, func(r rune) bool { return r == ':' || r == '"' })
}
