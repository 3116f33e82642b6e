package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
)

// Leave makes "/" the shell's working directory, so that it holds nothing else.
// No command can tell: Run, and Enter, go back first, with $PWD, $OLDPWD and the
// directory stack as they were. A shell that is away, or ended, stays as it is.
func (s *Shell) Leave(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer s.unlock()
	p := s.current()
	if s.isAway() || p == nil || p.dead() {
		return nil
	}
	st, err := parseContext(s.Context())
	if err != nil {
		return err
	}
	if _, err := s.ask(ctx, p, s.dialect.cd()+" /\n", st); err != nil {
		return s.broken(p, err)
	}
	s.setAway(true)
	return nil
}

// Enter goes back to the directory of before Leave and returns it. If it is gone,
// that is its nearest parent that exists. It is also the way to learn where a
// shell that never left is.
func (s *Shell) Enter(ctx context.Context) (string, error) {
	if err := s.lock(ctx); err != nil {
		return "", err
	}
	defer s.unlock()
	if _, err := s.ready(ctx); err != nil {
		return "", err
	}
	if !s.isAway() {
		return s.Context().Dir(), nil
	}
	st, err := parseContext(s.Context())
	if err != nil {
		return "", err
	}
	p := s.current()
	if _, err := s.ask(ctx, p, goTo(st.dir, st), st); err != nil {
		return "", s.broken(p, err)
	}
	got, err := s.captured(st.status)
	if err != nil {
		return "", err
	}
	st.dir = got.dir
	st.oldpwd, st.vars = got.oldpwd, merge(st.vars, got)
	s.adopt(st)
	return st.dir, nil
}

// merge takes the directory variables of got into vars: the rest of got lacks
// what an idle shell has put away.
func merge(vars string, got *state) string {
	var b strings.Builder
	for _, v := range variables(vars) {
		if v.name == "PWD" || v.name == "OLDPWD" {
			v.text = got.find(v.name)
		}
		if v.text != "" {
			b.WriteString(v.text + "\n")
		}
	}
	return b.String()
}

// chdir is the cd of Command.Dir.
func (s *Shell) chdir(ctx context.Context, dir string) error {
	p := s.current()
	st, err := parseContext(s.Context())
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s %s >/dev/null\n", s.dialect.cd(), quote(dir))
	if s.isAway() {
		text = goTo(st.dir, st) + text
	}
	status, err := s.ask(ctx, p, text, st)
	if err != nil {
		return s.broken(p, err)
	}
	if status != 0 {
		return fmt.Errorf("change directory to %s: no such directory, or no permission", dir)
	}
	got, err := s.captured(st.status)
	if err != nil {
		return err
	}
	st.dir, st.oldpwd, st.vars = got.dir, got.oldpwd, merge(st.vars, got)
	s.adopt(st)
	return nil
}

// mayEnter refuses a directory that is there but closed to another user's shell: the
// nearest parent, where a command goes if it is gone, may be no place for that command.
func (s *Shell) mayEnter(ctx context.Context) error {
	if s.account == nil || !s.isAway() {
		return nil
	}
	dir := s.Context().Dir()
	if _, err := os.Stat(dir); err != nil {
		return nil
	}
	p := s.current()
	st, err := parseContext(s.Context())
	if err != nil {
		return err
	}
	status, err := s.ask(ctx, p, fmt.Sprintf("(%s %s) >/dev/null 2>&1\n", s.dialect.cd(), quote(dir)), st)
	if err != nil {
		return s.broken(p, err)
	}
	if status != 0 {
		return fmt.Errorf("user %s may not enter %s: give access to it and to the directories above it", s.account.name, dir)
	}
	return nil
}

// ask runs a script of ours between commands. || : keeps set -e from ending the
// shell; the status comes from the variable that the post script reports.
func (s *Shell) ask(ctx context.Context, p *process, text string, st *state) (int, error) {
	nonce := newNonce()
	text = "if " + strings.TrimSuffix(text, "\n") + "\nthen __deployx_s=0\nelse __deployx_s=1\nfi\n"
	err := s.submit(p, s.between(st, text, nonce))
	if err != nil {
		return 0, err
	}
	return p.await(ctx, nonce, nil)
}

// broken kills a shell that failed between commands; the next command gets a new one.
func (s *Shell) broken(p *process, err error) error {
	p.kill()
	if errors.Is(err, errEnded) || errors.Is(err, errStuck) {
		return nil
	}
	return err
}

func (s *Shell) setAway(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = on
}

// cd is the dialect's cd that no function or alias of the user's replaces.
func (d dialect) cd() string {
	if d == posix {
		return `\command cd --`
	}
	return `\builtin cd -L --`
}
