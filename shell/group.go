package shell

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"deployx/internal/procstat"
)

// prefix names what a shell makes outside itself; the owner's pid follows it.
const prefix = "deployx-shell-"

// group knows which processes a shell's commands started, whatever they did to
// get away. All of a shell's processes are in a cgroup (v2) of their own, where
// that can be made. Each command's are told apart by their timer slack: a number
// of nanoseconds that fork and exec hand down, that only root can read or set for
// others, and of which a few thousand more than the default mean nothing.
// Moving the shell between cgroups would do too, but costs 16 ms a move.
//
// Without the cgroup all of /proc is read. Without root a command's processes are
// the shell's descendants and session, less those of before: one that calls setsid
// and whose parent ended is missed then, unless there is a cgroup.
type group struct {
	path   string // "" without a cgroup
	dir    *os.File
	force  fallback
	slack  int64        // the running or last command's; 0 when it cannot be set
	before map[int]bool // without cgroup or slack: what ran when the command started
}

// fallback forces the ways of hosts that lack something; for tests.
type fallback struct{ noCgroup, noSlack, noSteal bool }

const defaultSlack = 50_000 // ns: prctl(2), PR_SET_TIMERSLACK

// tags is a process-wide counter, so that two shells do not share a tag for long. It
// begins elsewhere in each process, for those of another owner are told apart by it too.
var tags atomic.Int64

func init() { tags.Store(int64(os.Getpid()) * 7919 % defaultSlack) }

func newGroup(force fallback) *group {
	g := &group{force: force}
	if force.noCgroup {
		return g
	}
	parent, err := cgroupParent()
	if err != nil {
		return g
	}
	sweepGroups(parent)
	path := filepath.Join(parent, fmt.Sprintf("%s%d-%s", prefix, os.Getpid(), newNonce()))
	if os.Mkdir(path, 0o755) != nil {
		return g
	}
	dir, err := os.Open(path)
	if err != nil {
		os.Remove(path)
		return g
	}
	g.path, g.dir = path, dir
	return g
}

// cgroupParent is the caller's own cgroup directory in the v2 hierarchy.
func cgroupParent() (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	path, ok := "", false
	for line := range strings.Lines(string(own)) {
		if p, found := strings.CutPrefix(line, "0::"); found {
			path, ok = strings.TrimSpace(p), true
		}
	}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if ok && len(f) > 4 && strings.Contains(line, " - cgroup2 ") {
			rel, err := filepath.Rel(f[3], path)
			if err == nil && !strings.HasPrefix(rel, "..") {
				return filepath.Join(f[4], rel), nil
			}
		}
	}
	return "", errors.ErrUnsupported
}

// sweepGroups removes empty cgroups of owners that were killed.
func sweepGroups(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if stale(filepath.Base(dir)) {
			os.Remove(dir) // rmdir: fails while anything runs in it, as it should
		}
	}
}

// stale tells whether the owner that a name was made by is gone.
func stale(name string) bool {
	pid, _, _ := strings.Cut(strings.TrimPrefix(name, prefix), "-")
	n, err := strconv.Atoi(pid)
	return err == nil && n > 0 && errors.Is(unix.Kill(n, 0), unix.ESRCH)
}

func (g *group) fd() int {
	if g.dir == nil {
		return -1
	}
	return int(g.dir.Fd())
}

// giveUp goes on without a cgroup.
func (g *group) giveUp() {
	g.dir.Close()
	os.Remove(g.path)
	g.dir, g.path = nil, ""
}

// tag starts a new command of the shell pid.
func (g *group) tag(pid int) {
	g.slack, g.before = defaultSlack+1+tags.Add(1)%defaultSlack, map[int]bool{}
	if g.force.noSlack || os.WriteFile(slackPath(pid), strconv.AppendInt(nil, g.slack, 10), 0) != nil {
		g.slack = 0
	}
	if g.slack != 0 && g.path != "" {
		return
	}
	for _, other := range g.started(pid) { // another owner's may have the same tag
		g.before[other] = true
	}
}

// untag gives the idle shell a number that no process of a command has, so that a
// watcher takes no job for the running command's. g.slack stays that of the last
// command.
func (g *group) untag(pid int) {
	if g.slack != 0 {
		os.WriteFile(slackPath(pid), strconv.AppendInt(nil, idleSlack, 10), 0)
	}
}

func slackPath(pid int) string { return fmt.Sprintf("/proc/%d/timerslack_ns", pid) }

// started lists what the command that was tagged last started and still runs.
func (g *group) started(shell int) []int {
	if g.slack == 0 {
		return slices.DeleteFunc(g.related(shell), func(pid int) bool { return g.before[pid] })
	}
	return slices.DeleteFunc(g.members(), func(pid int) bool {
		if pid == shell || g.before[pid] {
			return true
		}
		text, err := os.ReadFile(slackPath(pid))
		n, err2 := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
		return err != nil || err2 != nil || n != g.slack || stat(pid).zombie()
	})
}

// related lists the processes that may be a command's without a tag to tell.
func (g *group) related(shell int) []int {
	all := g.members()
	parent := map[int]procStat{}
	for _, pid := range all {
		parent[pid] = stat(pid)
	}
	return slices.DeleteFunc(all, func(pid int) bool {
		st := parent[pid]
		if pid == shell || st.zombie() {
			return true
		}
		if g.path != "" || st.session == shell {
			return false
		}
		for up := pid; up > 1; up = parent[up].ppid {
			if up == shell {
				return false
			}
		}
		return true
	})
}

// members lists candidates: the cgroup's processes, or all there are.
func (g *group) members() []int {
	if g.path == "" {
		return allPIDs()
	}
	text, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	if err != nil {
		return allPIDs()
	}
	var pids []int
	for f := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

func allPIDs() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var pids []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}

// procStat is what /proc/PID/stat (proc(5)) tells of a process; zero if it is gone.
type procStat struct {
	state         byte
	ppid, session int
	started       string // in ticks since boot
}

func (st procStat) zombie() bool { return st.state == 0 || st.state == 'Z' || st.state == 'X' }

// moving tells whether it can still run: it is neither gone nor stopped.
func (st procStat) moving() bool { return !st.zombie() && st.state != 'T' && st.state != 't' }

func stat(pid int) (st procStat) {
	f := procstat.Fields("/proc/" + strconv.Itoa(pid) + "/stat")
	if f == nil {
		return procStat{}
	}
	st.state, st.started = f[procstat.State][0], f[procstat.Started]
	var err, e error
	st.ppid, err = strconv.Atoi(f[procstat.Parent])
	if st.session, e = strconv.Atoi(f[procstat.Session]); err != nil || e != nil {
		return procStat{}
	}
	return st
}

func (g *group) survivors(shell int) []Process {
	var all []Process
	for _, pid := range g.started(shell) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err == nil {
			all = append(all, Process{pid, strings.TrimSuffix(string(name), "\n")})
		}
	}
	return all
}

// kill ends everything that the command started, but not the shell.
func (g *group) kill(shell int) {
	for _, pid := range g.started(shell) {
		unix.Kill(pid, unix.SIGKILL) // an error means that it is gone
	}
}

// close removes the cgroup; what still runs moves to the one above.
func (g *group) close() error {
	if g.dir == nil {
		return nil
	}
	defer g.dir.Close()
	up := filepath.Join(filepath.Dir(g.path), "cgroup.procs")
	var err error
	for range 100 {
		if err = os.Remove(g.path); err == nil || errors.Is(err, os.ErrNotExist) {
			return nil
		}
		for _, pid := range g.members() {
			os.WriteFile(up, []byte(strconv.Itoa(pid)), 0) // one that ended meanwhile fails, rightly
		}
	}
	return err
}
