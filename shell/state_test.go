package shell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A shell started from another's context, as another process would do it later,
// is in the same state.
func TestContext(t *testing.T) {
	s := start(t, Options{Dir: "/usr/share"})
	for _, text := range []string{
		"cd ../bin", "export A='it'\\''s' B=$'two\\nlines'", "plain='not exported'", "arr=(1 'two words' $'new\\nline'); sparse=([5]=x)",
		"declare -A m=([k]='v v' ['odd \"key\"']=$'\\t')", "declare -i n=3", "readonly ro=1", "declare -l low=ABC", "declare -n ref=plain",
		"declare -x empty=", "declare unset_one", "shopt -s extglob nullglob; shopt -u sourcepath",
		"f() { case $1 in @(a|b)) echo yes;; esac; cat <<X\nhere $1\nX\n}", "g() { echo g; }; export -f g", "alias ll='ls -l' q=\"echo 'q'\"",
		"umask 027", "set -o pipefail -f", "set +B", "set -- one 'two words'", "PS1='$ '; PROMPT_COMMAND=(true false)", "MAILCHECK=7; HISTFILE=/dev/null",
		"(exit 5)",
	} {
		if _, errs, _ := run(t, s, text); errs != "" {
			t.Fatalf("%q: %s", text, errs)
		}
	}
	at := s.Context()
	const probe = `echo "$?|$PWD|$OLDPWD|$A|$B|$plain|${arr[1]}|${arr[2]}|${sparse[5]}|${m[odd "key"]}|$ref|${unset_one-none}|$*"
		n=n+1 low=XYZ; echo $n $low; (ro=2) 2>/dev/null || echo kept; sh -c 'echo ${plain-unexported}$A'; f a; bash -c g; alias; umask
		set -o; shopt -p; declare -p PROMPT_COMMAND MAILCHECK HISTFILE; printf '[%s]' "$@"`
	want, _, _ := run(t, s, probe)
	again := start(t, Options{Context: at}) // not before: start's count takes in what s has opened
	if d := cmp.Diff(string(at), string(again.Context())); d != "" {
		t.Error(d)
	}
	got, errs, _ := run(t, again, probe)
	if d := cmp.Diff(want, got); d != "" || errs != "" || !strings.Contains(got, "yes\nhere a\ng\n") {
		t.Errorf("%s%s%s", d, errs, got)
	}
}

func TestPosixContext(t *testing.T) {
	for _, program := range programs[1:] {
		s := start(t, Options{Program: program, Dir: "/usr/share"})
		run(t, s, "cd ../bin; export A='it'\\''s\nhere' B; umask 027; (exit 3)")
		again := start(t, Options{Program: program, Context: s.Context()})
		says(t, again, `echo "$? $PWD $OLDPWD"; sh -c 'echo "$A"'; umask`, "3 /usr/bin /usr/share\nit's\nhere\n0027\n")
		if d := cmp.Diff(string(s.Context()), string(start(t, Options{Program: program, Context: s.Context()}).Context())); d != "" {
			t.Error(d)
		}
	}
}

// A directory of a context that is gone gives its nearest parent.
func TestContextDirGone(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		top := t.TempDir()
		if err := os.MkdirAll(top+"/a/b'c", 0o755); err != nil {
			t.Fatal(err)
		}
		s := start(t, Options{Program: program, Dir: top + "/a/b'c"})
		if got := s.Context().Dir(); got != top+"/a/b'c" {
			t.Fatal(got)
		}
		if err := os.RemoveAll(top + "/a"); err != nil {
			t.Fatal(err)
		}
		if got := start(t, Options{Program: program, Context: s.Context()}).Context().Dir(); got != top {
			t.Error(got)
		}
	})
}

func TestContextDamaged(t *testing.T) {
	good := string(start(t, Options{}).Context())
	for _, bad := range []string{"x", "deployx-shell-context 2 bash\n", "deployx-shell-context 1 fish\n", good[:len(good)-9], good + "@dir -1\n", good + "@dir 99\nx\n"} {
		if s, err := Start(t.Context(), Options{Context: Context(bad)}); err == nil {
			s.Close()
			t.Errorf("%.40q… is taken", bad)
		}
		if Context(bad).Dir() != "" {
			t.Errorf("%.40q… has a directory", bad)
		}
	}
	if _, err := Start(t.Context(), Options{Program: "dash", Context: Context(good)}); err == nil {
		t.Error("dash takes a context of bash")
	}
}

// What a command finds of the one before, as in one terminal session.
func TestNothingBetween(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%t", away), func(t *testing.T) { nothingBetween(t, Options{Away: away}) })
	}
}

func nothingBetween(t *testing.T, o Options) {
	s := start(t, o)
	dir := t.TempDir()
	run(t, s, "echo first second")
	says(t, s, "echo $_", "second\n")
	run(t, s, "mkdir "+dir+"/new")
	says(t, s, "cd $_; pwd", dir+"/new\n")
	run(t, s, "false | (exit 3) | true")
	says(t, s, "echo ${PIPESTATUS[@]}", "1 3 0\n")
	run(t, s, "sleep 1000 & job=$!")
	says(t, s, "[ $! = $job ] && jobs -p | grep -c . && kill $!; wait $job; echo $?", "1\n143\n")
	says(t, s, "trap 'echo trapped' USR1; kill -USR1 $$", "trapped\n")
	says(t, s, "kill -USR1 $$", "trapped\n")
	says(t, s, "echo ${#FUNCNAME[@]} $LINENO; history | wc -l", "0 1\n0\n")
	says(t, s, "compgen -v __deployx; compgen -A function __deployx; env | grep -c deployx; :", "__deployx_d\n0\n")
	run(t, s, "PROMPT_COMMAND='echo x >>"+dir+"/prompted'; PS1='$(echo x >>"+dir+"/prompted)'; PS0=$PS1")
	says(t, s, "cat "+dir+"/prompted 2>/dev/null; [ \"$PS1\" = \"$PS0\" ] && echo kept", "kept\n")
	says(t, s, "pushd /usr >/dev/null; pushd /etc >/dev/null; dirs", "/etc /usr "+dir+"/new\n")
	if err := s.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	says(t, s, "dirs; popd >/dev/null; pwd", "/etc /usr "+dir+"/new\n/usr\n")
	_, errs, _ := run(t, s, "set -x; echo a >/dev/null")
	if strings.Contains(errs, "deployx") || strings.Count(errs, "\n") != 1 {
		t.Errorf("%q", errs)
	}
	if _, errs, _ = run(t, s, "echo b >/dev/null"); strings.Contains(errs, "deployx") || strings.Count(errs, "\n") != 1 {
		t.Errorf("%q", errs)
	}
}

// What is not carried to another shell, so that docs/shell.md stays true.
func TestNotRestored(t *testing.T) {
	s := start(t, Options{})
	run(t, s, "exec 7</etc/passwd; trap 'echo x' EXIT USR1; sleep 1000 & pushd /usr; ulimit -n 100; hash ls")
	at := s.Context()
	run(t, s, "kill $!")
	again := start(t, Options{Context: at})
	says(t, again, "ls /proc/self/fd | wc -l; trap -p EXIT USR1; jobs; dirs; [ $(ulimit -n) != 100 ] && echo open", "4\n/usr\nopen\n")
}

func TestLeave(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		top := t.TempDir()
		if err := os.MkdirAll(top+"/old/deep", 0o755); err != nil {
			t.Fatal(err)
		}
		s := start(t, Options{Program: program, Dir: top})
		run(t, s, "cd "+top+"/old; cd deep")
		for range 2 {
			if err := s.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			if cwd := cwdOf(t, s); cwd != "/" {
				t.Errorf("away in %s", cwd)
			}
		}
		says(t, s, "echo $PWD $OLDPWD; pwd", top+"/old/deep "+top+"/old\n"+top+"/old/deep\n")
		says(t, s, "cd - >/dev/null; pwd", top+"/old\n")
		run(t, s, "cd deep")
		leave := func() {
			if err := s.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		leave()
		if dir, err := s.Enter(t.Context()); dir != top+"/old/deep" || err != nil || cwdOf(t, s) != dir {
			t.Error(dir, err)
		}
		leave()
		if err := os.RemoveAll(top + "/old"); err != nil {
			t.Fatal(err)
		}
		if dir, err := s.Enter(t.Context()); dir != top || err != nil || s.Context().Dir() != top {
			t.Error(dir, err)
		}
		r := says(t, s, "pwd", top+"\n")
		if r.Dir != top {
			t.Error(r.Dir)
		}
	})
}

// TestAway: with Options.Away a shell holds no directory between commands.
func TestAway(t *testing.T) {
	each(t, func(t *testing.T, program string) {
		top := t.TempDir()
		s := start(t, Options{Program: program, Dir: top, Away: true})
		for _, text := range []string{"mkdir sub; cd sub", "set -e", "cd ..; false || :"} {
			run(t, s, text)
			if cwd := cwdOf(t, s); cwd != "/" {
				t.Errorf("after %q away in %s", text, cwd)
			}
		}
		says(t, s, "echo $PWD $OLDPWD; pwd", top+" "+top+"/sub\n"+top+"\n")
	})
}

func cwdOf(t *testing.T, s *Shell) string {
	t.Helper()
	dir, err := os.Readlink("/proc/" + strconv.Itoa(s.PID()) + "/cwd")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestEnvironmentIsClean(t *testing.T) {
	t.Setenv("SECRET_TOKEN", "x")
	s := start(t, Options{Env: CleanEnv(EnvOptions{Extra: []string{"DEPLOYX_TREE=/t", "LANG=C"}})})
	out, _, _ := run(t, s, "env | cut -d= -f1 | sort | tr '\\n' ' '; echo $LANG")
	if out != "DEPLOYX_TREE HOME LANG LOGNAME PATH PWD SHELL SHLVL TERM USER _ C\n" {
		t.Errorf("%q", out)
	}
}

func TestPrograms(t *testing.T) {
	for _, name := range []string{"fish", "/no/such/shell", "/etc/passwd", "/bin/true"} {
		_, err := Start(context.Background(), Options{Program: name})
		var missing *NotFoundError
		if !errors.As(err, &missing) || !strings.Contains(err.Error(), "bash") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
