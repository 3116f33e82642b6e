package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

// machine is a Debian with systemd as PID 1 in a container of systemd-nspawn. It
// shares the host's network, so that a backend on the host is at 127.0.0.1.
type machine struct {
	t       *testing.T
	root    string
	nspawn  *exec.Cmd
	leader  int // systemd's pid on the host; 0 while it is off
	console logged
}

// newMachine makes a machine that is off, with our deployx in it.
func newMachine(t *testing.T) *machine {
	t.Helper()
	testns.Need(t)
	for _, tool := range []string{"debootstrap", "systemd-nspawn", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			notInstalled(t, tool)
		}
	}
	made := exec.Command("../scripts/testroot.sh")
	var why bytes.Buffer
	made.Stderr = &why
	tar, err := made.Output()
	if err != nil {
		t.Fatalf("no root for a machine: %v\n%s", err, why.String())
	}
	m := &machine{t: t, root: filepath.Join(t.TempDir(), "root")}
	t.Cleanup(m.remove)
	h := newHost(t) // for its binary
	m.sh(fmt.Sprintf("mkdir %[1]s && tar -C %[1]s --xattrs -xf %[2]s && cp %[3]s %[1]s/usr/local/bin/deployx", m.root, strings.TrimSpace(string(tar)), h.binary))
	return m
}

// sh runs a command on the host.
func (m *machine) sh(text string) {
	m.t.Helper()
	if out, err := exec.Command("bash", "-ec", text).CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", text, err, out)
	}
}

// cgroup is where the machine's processes are: below the test's own cgroups, for
// systemd takes over the one that it is started in.
const cgroup = `for dir in $(awk -F: '$1 == "0" || $2 == "name=systemd" {print $2 ":" $3}' /proc/self/cgroup); do
	point=$(awk -v kind="${dir%%:*}" '/ - cgroup2 / && kind == "" || / - cgroup / && kind != "" && index($0, kind) {print $5}' /proc/self/mountinfo | head -1)
	box=$point${dir#*:}/deployx-test-$BOX
	mkdir -p "$box"
	echo $$ >"$box/cgroup.procs"
done
exec systemd-nspawn -q -D "$ROOT" --register=no --keep-unit --capability=all --console=pipe -b`

// boot starts the machine and waits until systemd has started everything.
func (m *machine) boot() {
	m.t.Helper()
	m.nspawn = exec.Command("bash", "-c", cgroup)
	m.nspawn.Env = append(os.Environ(), "ROOT="+m.root, fmt.Sprint("BOX=", os.Getpid()))
	m.nspawn.Stdout, m.nspawn.Stderr = &m.console, &m.console
	if err := m.nspawn.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.eventually("systemd runs", func() bool { m.leader = m.child(); return m.leader != 0 })
	var state string
	m.eventually("the machine has booted", func() bool {
		out, _ := m.command("systemctl", "is-system-running", "--wait").Output() // fails until it can be asked
		state = strings.TrimSpace(string(out))
		return state == "running" || state == "degraded"
	})
	m.t.Logf("booted: %s", state)
}

// child is systemd's pid, once nspawn has made it PID 1 of its namespace.
func (m *machine) child() int {
	pid := m.nspawn.Process.Pid
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || len(bytes.Fields(b)) != 1 {
		return 0
	}
	child := string(bytes.Fields(b)[0])
	if name, err := os.ReadFile(filepath.Join("/proc", child, "comm")); err != nil || string(name) != "systemd\n" {
		return 0
	}
	n, err := strconv.Atoi(child)
	if err != nil {
		return 0
	}
	return n
}

// kill is a SIGKILL of everything in the machine, at once: the kernel ends a pid
// namespace with its PID 1. What is mounted in it is gone; nothing is flushed or
// said good-bye to.
func (m *machine) kill() {
	if m.leader != 0 {
		_ = unix.Kill(m.leader, unix.SIGKILL)
	} else {
		_ = m.nspawn.Process.Kill()
	}
	_ = m.nspawn.Wait()
	m.nspawn, m.leader = nil, 0
}

func (m *machine) remove() {
	if m.t.Failed() && m.leader != 0 {
		out, _ := m.command("journalctl", "-b", "--no-pager", "-o", "short-monotonic").CombinedOutput()
		lines := strings.Split(string(out), "\n")
		m.t.Logf("the machine's journal:\n%s", strings.Join(lines[max(0, len(lines)-150):], "\n"))
	}
	if m.nspawn != nil {
		m.kill()
	}
	for _, top := range []string{"/sys/fs/cgroup"} {
		_ = filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && d.Name() == fmt.Sprint("deployx-test-", os.Getpid()) {
				m.empty(p)
				return filepath.SkipDir
			}
			return nil
		})
	}
}

// empty removes a cgroup and those below it, once the processes are gone.
func (m *machine) empty(cgroup string) {
	m.eventually("the machine's cgroup is gone", func() bool {
		var dirs []string
		_ = filepath.WalkDir(cgroup, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i])
		}
		_, err := os.Stat(cgroup)
		return errors.Is(err, fs.ErrNotExist)
	})
}

func (m *machine) eventually(what string, ok func() bool) {
	m.t.Helper()
	for end := time.Now().Add(soon); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			m.t.Fatalf("not within %v: %s\n%s", soon, what, m.console.b.String())
		}
	}
}

// command is a command in the machine.
func (m *machine) command(args ...string) *exec.Cmd {
	args = append([]string{
		"--target", strconv.Itoa(m.leader), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root", "--wd", "--",
		"env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
	}, args...)
	return exec.Command("nsenter", args...)
}

// try runs a command in the machine.
func (m *machine) try(args ...string) (string, error) {
	out, err := m.command(args...).CombinedOutput()
	return string(out), err
}

// must is try of a command that must succeed.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	out, err := m.try(args...)
	if err != nil {
		m.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (m *machine) path(name string) string { return filepath.Join(m.root, name) }

// write writes a file of the machine, from the host: below mounts, if there are any.
func (m *machine) write(name, text string) {
	m.t.Helper()
	err := os.MkdirAll(filepath.Dir(m.path(name)), 0o755)
	if err == nil {
		err = os.WriteFile(m.path(name), []byte(text), 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// read reads a file of the machine, as a process in it does.
func (m *machine) read(name string) string {
	out, err := m.try("cat", name)
	if err != nil {
		return "(" + out + ")"
	}
	return out
}

// show is a property of a unit.
func (m *machine) show(unit, property string) string {
	m.t.Helper()
	return strings.TrimSpace(m.must("systemctl", "show", "--value", "-p", property, unit))
}

// moment is a timestamp property of a unit, in microseconds.
func (m *machine) moment(unit, property string) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.show(unit, property))
	if err != nil || n == 0 {
		m.t.Fatalf("%s has no %s: %v\n%s", unit, property, err, m.must("systemctl", "show", "-p", "ActiveState,Result,SubState", unit))
	}
	return n
}

// status is deployx status --json of one tree.
func (m *machine) status(tree string) map[string]any {
	m.t.Helper()
	var all struct{ Trees []map[string]any }
	if err := json.Unmarshal([]byte(m.must("deployx", "status", "--json", "--tree", tree)), &all); err != nil || len(all.Trees) != 1 {
		m.t.Fatal(all, err)
	}
	return all.Trees[0]
}
