package shell

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed watcher.sh
var watcherScript string

// watcher is a process that ends the running command when its owner is killed and so
// cannot. It is started when a command has run for watchAfter, and lives as long as the
// shell's owner wants. Nothing is lost without it but this, so errors are not told.
type watcher struct {
	cmd  *exec.Cmd
	pipe *os.File // its end of file tells of the owner's end
	told int      // the shell's pid that it knows
}

// watchAfter spares short commands the start of a process.
const watchAfter = 5 * time.Millisecond

// guard makes sure that the watcher runs and knows the shell p.
func (s *Shell) guard(p *process) {
	w := &s.watcher
	if w.cmd == nil && w.start(s.program, s.dialect) != nil {
		return
	}
	if w.told != p.pid {
		w.told = p.pid
		fmt.Fprintf(w.pipe, "%d %s %s\n", p.pid, stat(p.pid).started, s.group.path)
	}
}

func (w *watcher) start(program string, d dialect) error {
	r, pipe, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	args := []string{"sh", "-c", watcherScript}
	if strings.HasPrefix(filepath.Base(program), "busybox") {
		args = append([]string{"busybox"}, args...)
	}
	c := &exec.Cmd{Path: program, Args: args, Env: []string{"PATH=" + DefaultPath}, Dir: "/", Stdin: r}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return errors.Join(err, pipe.Close())
	}
	w.cmd, w.pipe = c, pipe
	return nil
}

// close ends the watcher; the zero one too.
func (w *watcher) close() {
	if w.cmd == nil {
		return
	}
	w.cmd.Process.Signal(unix.SIGKILL) // before it can see the end of the file
	w.cmd.Wait()                       //nolint:errcheck // killed
	w.pipe.Close()
}
