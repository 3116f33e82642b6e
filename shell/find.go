package shell

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// dialect says which of the two driver scripts a program understands.
type dialect int

const (
	bash  dialect = iota
	posix         // dash, busybox and whatever else calls itself sh
)

func (d dialect) String() string { return [...]string{"bash", "posix"}[d] }

// searchPath is where shells are looked for when PATH has none.
const searchPath = "/bin:/usr/bin:/usr/local/bin"

// NotFoundError says that no usable shell is called Name.
type NotFoundError struct {
	Name  string
	Found []string // Installed, at the time
}

func (e *NotFoundError) Error() string {
	if len(e.Found) == 0 {
		return fmt.Sprintf("no shell %q, and none found on this host: install bash", e.Name)
	}
	return fmt.Sprintf("no shell %q: use one of %s", e.Name, strings.Join(e.Found, ", "))
}

// Installed lists the shells on this host that Options.Program may name.
func Installed() []string {
	var found []string
	for _, name := range []string{"bash", "sh", "dash", "busybox"} {
		if _, err := which(name); err == nil {
			found = append(found, name)
		}
	}
	return found
}

// find resolves a program name to a path and the dialect it speaks.
// A path is judged by its base name with links followed, so that sh may be dash.
func find(name string) (string, dialect, error) {
	if name == "" {
		name = "bash"
	}
	path, err := which(name)
	if err != nil {
		return "", 0, &NotFoundError{Name: name, Found: Installed()}
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", 0, &NotFoundError{Name: name, Found: Installed()}
	}
	switch base := filepath.Base(real); {
	case base == "bash" && filepath.Base(path) != "sh":
		return path, bash, nil
	case base == "bash", base == "sh", base == "dash", base == "ash", base == "busybox":
		return path, posix, nil
	}
	return "", 0, &NotFoundError{Name: name, Found: Installed()}
}

// which finds an executable. It does not trust PATH alone: a service may have none.
func which(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	if strings.Contains(name, "/") {
		return "", os.ErrNotExist
	}
	for _, dir := range filepath.SplitList(searchPath) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", os.ErrNotExist
}

// argv is how the program starts: interactive, because only an interactive
// shell survives SIGINT, failed expansions and failed execs; without prompts,
// line editing and start-up files.
func (d dialect) argv(path string) []string {
	switch {
	case d == bash:
		return []string{"bash", "--norc", "--noprofile", "--noediting", "-i"}
	case strings.HasPrefix(filepath.Base(path), "busybox"):
		return []string{"busybox", "sh", "-i"}
	}
	return []string{filepath.Base(path), "-i"}
}
