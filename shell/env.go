package shell

import (
	"fmt"
	"os/user"
	"strconv"
	"strings"
)

// DefaultPath is the PATH of a clean environment.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// EnvOptions say what a clean environment holds beside its defaults.
type EnvOptions struct {
	User  string   // whose HOME, USER and SHELL; "" is the caller
	Path  string   // "" is DefaultPath
	Lang  string   // "" is C.UTF-8
	Term  string   // "" is dumb
	Extra []string // "K=V", winning over everything else
}

// CleanEnv builds an environment of HOME, PATH, LANG, TERM, USER, LOGNAME, SHELL
// and the extras. It reads nothing of the calling process's own environment, so
// no secret of it can reach a command. Unknown users get HOME=/ and their name.
func CleanEnv(o EnvOptions) []string {
	or := func(s, def string) string {
		if s == "" {
			return def
		}
		return s
	}
	a := passwd(o.User)
	env := []string{
		"HOME=" + or(a.home, "/"), "PATH=" + or(o.Path, DefaultPath),
		"LANG=" + or(o.Lang, "C.UTF-8"), "TERM=" + or(o.Term, "dumb"),
		"USER=" + a.name, "LOGNAME=" + a.name, "SHELL=/bin/sh",
	}
	for _, kv := range o.Extra {
		env = setenv(env, kv)
	}
	return env
}

func setenv(env []string, kv string) []string {
	key, _, _ := strings.Cut(kv, "=")
	for i, old := range env {
		if strings.HasPrefix(old, key+"=") {
			env[i] = kv
			return env
		}
	}
	return append(env, kv)
}

// account is a user to run commands as.
type account struct {
	name, home string
	uid, gid   uint32
	groups     []uint32
}

// passwd is the account's name and home, the caller's own for "".
func passwd(name string) account {
	u, err := user.Current()
	if name != "" {
		u, err = user.Lookup(name)
	}
	if err != nil {
		return account{name: name}
	}
	return account{name: u.Username, home: u.HomeDir}
}

// lookup resolves a user with all its groups; nil for "", the caller.
func lookup(name string) (*account, error) {
	if name == "" {
		return nil, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("look up user: %w", err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("look up groups of %s: %w", name, err)
	}
	a := &account{name: name, home: u.HomeDir}
	if a.uid, err = id(u.Uid); err != nil {
		return nil, err
	}
	if a.gid, err = id(u.Gid); err != nil {
		return nil, err
	}
	for _, g := range ids {
		n, err := id(g)
		if err != nil {
			return nil, err
		}
		a.groups = append(a.groups, n)
	}
	return a, nil
}

func id(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read id: %w", err)
	}
	return uint32(n), nil
}
