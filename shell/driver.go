package shell

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed post.bash
var postBash string

//go:embed post.sh
var postPosix string

// own are the variables that bash itself keeps, or that belong to one process:
// a new shell has its own and most cannot be set.
var own = strings.Fields(`_ BASH BASHPID BASH_ALIASES BASH_ARGC BASH_ARGV BASH_ARGV0 BASH_CMDS BASH_COMMAND BASH_LINENO
	BASH_LOADABLES_PATH BASH_SOURCE BASH_SUBSHELL BASH_VERSINFO BASH_VERSION COMP_WORDBREAKS DIRSTACK
	EPOCHREALTIME EPOCHSECONDS EUID FUNCNAME GROUPS HISTCMD LINENO PIPESTATUS PPID RANDOM SECONDS SRANDOM UID`)

// kept tells whether a variable belongs into a context.
func kept(name string) bool {
	return !strings.HasPrefix(name, reserved) && !slices.Contains(own, name)
}

// elsewhere are the variables of a context that something else restores.
var elsewhere = strings.Fields("BASHOPTS SHELLOPTS PWD OLDPWD")

// idle are the variables that an interactive shell acts on while it waits for a
// command. post.bash unsets them, so that no prompt runs what the user put there.
var idle = strings.Fields("PS0 PS1 PROMPT_COMMAND TMOUT MAIL MAILPATH MAILCHECK IGNOREEOF")

const reserved = "__deployx_"

// quote makes one word of any text that holds no NUL.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// prefixed makes a declare statement that functions of the user's cannot shadow.
// Arrays stay as they are: bash parses "builtin declare a=(...)" as an error.
func prefixed(stmt string) string {
	if strings.Contains(stmt, "=(") {
		return stmt
	}
	return `\builtin ` + stmt
}

// restore is the script that gives a fresh shell the state st, dir and all.
func (d dialect) restore(st *state, dir string) string {
	if d == posix {
		return posixRestore(st, dir)
	}
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("set +o history; set +H; unset HISTFILE; history -c")
	if st.umask != "" {
		line("umask %s", st.umask)
	}
	if opts := st.options("BASHOPTS"); len(opts) > 0 {
		line("for __deployx_o in ${BASHOPTS//:/ }; do shopt -u $__deployx_o; done; unset __deployx_o")
		line("shopt -s %s", strings.Join(opts, " "))
	}
	var late []string // a restored IFS or LC_ALL must not change how the rest is read
	for _, v := range variables(st.vars) {
		if !slices.Contains(elsewhere, v.name) {
			late = append(late, v.text)
		}
	}
	line("%s", strings.Join(late, "\n"))
	line("%s", goTo(dir, st))
	if st.args != "" {
		line("set -- %s", st.args)
	}
	line("eval %s", quote(st.funcs)) // a syntax error in it must not end the rest
	for f := range strings.Lines(st.flags) {
		if !strings.HasPrefix(f, "declare -f ") {
			line("%s", strings.TrimSpace(f))
		}
	}
	line("eval %s", quote(st.aliases))
	b.WriteString(setOptions(st))
	return b.String()
}

// setOptions comes last: from here on set -e, -u or -x may be in force.
func setOptions(st *state) string {
	opts := st.options("SHELLOPTS")
	if st.vars == "" {
		return ""
	}
	var b strings.Builder
	b.WriteString("set")
	for _, o := range []string{"braceexpand", "hashall", "interactive-comments"} {
		if !slices.Contains(opts, o) {
			b.WriteString(" +o " + o)
		}
	}
	for _, o := range opts {
		if o != "monitor" && o != "history" && o != "onecmd" { // the last ends a shell at once
			b.WriteString(" -o " + o)
		}
	}
	return b.String() + "\n"
}

// goTo goes to dir, or to its nearest parent that exists, and sets $OLDPWD as it was.
func goTo(dir string, st *state) string {
	if dir == "" {
		dir = "/"
	}
	cd, decl := `\builtin cd -L --`, st.find("OLDPWD")
	switch {
	case st.dialect == posix && st.oldpwd != "":
		decl = "OLDPWD=" + quote(st.oldpwd)
	case decl != "":
		decl = "\\unset OLDPWD\n" + prefixed(decl)
	default:
		decl = `\unset OLDPWD`
	}
	if st.dialect == posix {
		cd = `\command cd --`
	}
	return fmt.Sprintf(`__deployx_c=%s
while ! %s "${__deployx_c:-/}" && [ -n "$__deployx_c" ]; do __deployx_c=${__deployx_c%%/*}; done >/dev/null
%s
\unset __deployx_c
`, quote(dir), cd, decl)
}

func posixRestore(st *state, dir string) string {
	var b strings.Builder
	if st.umask != "" {
		fmt.Fprintf(&b, "umask %s\n", st.umask)
	}
	for _, v := range variables(st.vars) {
		if v.name != "PWD" && v.name != "OLDPWD" {
			b.WriteString(v.text + "\n")
		}
	}
	at := *st
	at.dialect = posix
	b.WriteString(goTo(dir, &at))
	return b.String()
}

// script is the text of one command. main goes through all of it; arm is what
// sets $?, and post runs once more if main was cut short.
type script struct {
	files           scripts
	main, arm, post string
}

// command is the script of one command in a shell that is in the state st: give
// back what post took away, enter the directory if the shell is away, export the
// command's environment, leave $? and $_ as the last command did, run, capture.
// All up to the command is on line 1, from where the shell counts its lines.
func (s *Shell) command(st *state, c Command, redirect, nonce string) script {
	d, last, files := s.dialect, quote(st.lastArg), s.wires.next()
	dot := d.special(".")
	// "&& :" keeps set -e from ending the shell; the arguments become $_.
	main := fmt.Sprintf("%s %s %s && : %s; %s%s\n%s %s\n", dot, files.arm.path, last, last,
		d.pipeline(st, c.Text), d.body(st, c.Text, redirect), dot, files.post.path)
	return script{
		files: files,
		main:  main,
		arm:   s.before(st, c.Env) + d.tell(nonce, "start") + d.special("return") + " " + or0(st.status) + "\n",
		post:  d.after(st, c.Env, nonce, s.wires.state.path, s.o.Away, c.Ended != nil),
	}
}

func (s *Shell) before(st *state, env []string) string {
	var b strings.Builder
	b.WriteString("{\n" + s.dialect.fresh() + s.dialect.gate(s.wires.state.path))
	if s.dialect == posix {
		fmt.Fprintf(&b, "PS1=%s\n", quote(st.ps1))
	}
	for _, v := range variables(st.vars) {
		if s.dialect == bash && slices.Contains(idle, v.name) {
			b.WriteString(prefixed(v.text) + "\n")
		}
	}
	if s.isAway() {
		b.WriteString(goTo(st.dir, st))
	}
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "%s %s=%s\n", s.dialect.special("export"), key, quote(value))
	}
	b.WriteString("} 2>/dev/null || :\n")
	return b.String()
}

// fresh forgets the run of the last post script, which a signal may have cut short.
func (d dialect) fresh() string {
	return d.special("unset") + " -v __deployx_s __deployx_u __deployx_p __deployx_w __deployx_k 2>/dev/null || :\n__deployx_d=\n"
}

// gateSignal asks a shell to give the command up, see gate. SIGRTMAX: programs have no use for it.
const gateSignal = unix.Signal(64)

// gate sets a trap that no further command of a text gets past. SIGINT alone is not
// enough: a shell that waits for a child goes on when that does not die of SIGINT,
// be it that it caught it, or that it was reached between fork and exec. A trapped
// signal stays pending until the child ended, and is looked at before each command.
// Where SIGINT is trapped or ignored, and so does not end the text, the shell ends. If
// bash gets past the kill otherwise, it holds SIGINT back (while it reads a substitution)
// and takes it right after.
func (d dialect) gate(scratch string) string {
	action := fmt.Sprintf(`\builtin kill -INT $$; \builtin trap -p INT >|%[1]s; \builtin read -r __deployx_k <%[1]s; case $__deployx_k in ?*) \builtin exit %[2]d;; esac`, scratch, exitInterrupt)
	if d == posix {
		action = fmt.Sprintf(`\command kill -INT $$; \command exit %d`, exitInterrupt)
	}
	return fmt.Sprintf("%s '%s' %d || :\n", d.special("trap"), action, int(gateSignal))
}

// between is a script of ours that runs when no command does.
func (s *Shell) between(st *state, text, nonce string) script {
	files := s.wires.next()
	return script{
		files: files,
		main:  s.dialect.fresh() + text + fmt.Sprintf("%s %s\n", s.dialect.special("."), files.post.path),
		post:  s.dialect.after(st, nil, nonce, s.wires.state.path, false, false),
	}
}

// bare is a script that answers and does nothing else.
func (s *Shell) bare(nonce string) script {
	files := s.wires.next()
	return script{
		files: files,
		main:  fmt.Sprintf("%s %s\n", s.dialect.special("."), files.post.path),
		post:  s.dialect.tell(nonce, "0") + "__deployx_d=1\n",
	}
}

// carry is appended to a command's text so that the next one finds $_, $? and
// PIPESTATUS. It is a command of a redirection only, for set -x shows none and
// nothing of it can be shadowed.
const carry = "\n<<<${__deployx_u=$_}$((__deployx_s=$?))${__deployx_p=${PIPESTATUS[@]}}"

// carries tells whether carry can follow the text: not where it would complete
// what is a syntax error, become part of a here-document, or be seen by a DEBUG
// trap or set -v. $? is kept without it too; $_ and PIPESTATUS are not.
func (st *state) carries(text string) bool {
	for _, s := range []string{"<<", "#", "DEBUG", "verbose", "set -", "shopt"} {
		if strings.Contains(text, s) {
			return false
		}
	}
	text = strings.TrimRight(text, " \t\n")
	for _, s := range []string{"|", "&&", "|&", "\\", "!"} {
		if strings.HasSuffix(text, s) {
			return false
		}
	}
	opts := st.options("SHELLOPTS")
	return text != "" && !slices.Contains(opts, "verbose") && !slices.Contains(opts, "functrace")
}

// body is the script of the command itself.
func (d dialect) body(st *state, text, redirect string) string {
	if d == bash && st.carries(text) {
		text += carry
	}
	return fmt.Sprintf("%s %s %s", d.special("eval"), quote(text), redirect)
}

// pipeline makes PIPESTATUS what it was, for a text that asks for it: it costs a
// fork for each part.
func (d dialect) pipeline(st *state, text string) string {
	parts := strings.Fields(st.pipe)
	if d != bash || len(parts) < 2 || !strings.Contains(text, "PIPESTATUS") || or0(st.status) != "0" && slices.Contains(st.options("SHELLOPTS"), "errexit") {
		return ""
	}
	for i, n := range parts {
		parts[i] = `(\builtin exit ` + n + ")"
	}
	return strings.Join(parts, "|") + "; "
}

// tell sends a word to the owner.
func (d dialect) tell(nonce, word string) string {
	printf := `\builtin printf`
	if d == posix {
		printf = `\command printf`
	}
	return fmt.Sprintf("%s '%%s %%s' %s %s >&0 2>/dev/null || :\n", printf, nonce, word)
}

// special names a special builtin: only bash lets a function stand before one.
func (d dialect) special(name string) string {
	if d == posix {
		return `\` + name
	}
	return `\builtin ` + name
}

// after captures the state, and then leaves if asked; before that it says that the text
// has ended, if asked. env is what before exported, to be put back as st had it.
func (d dialect) after(st *state, env []string, nonce, path string, leave, say bool) string {
	var b strings.Builder
	for _, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		fmt.Fprintf(&b, "%s %s\n", d.special("unset"), key)
		if old := st.find(key); old != "" {
			if d == bash {
				old = prefixed(old)
			}
			b.WriteString(old + "\n")
		}
	}
	text := postBash
	if d == posix {
		text = postPosix
	}
	away, ended := ":", ":"
	if leave {
		away = d.cd() + " /"
	}
	if say {
		ended = d.tell(nonce, "end")
	}
	return strings.NewReplacer("@ENDED@", ended, "@RESTORE@", b.String(), "@STATE@", path, "@NONCE@", nonce, "@LEAVE@", away).Replace(text)
}

func or0(s string) string {
	if s == "" {
		return "0"
	}
	return s
}
