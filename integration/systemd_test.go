package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	// needy needs the tree, and is started by the boot like any service.
	needy = `[Service]
WorkingDirectory=/srv/app
ExecStart=/bin/sh -c 'cat config >/var/log/needy; exec sleep infinity'
[Install]
WantedBy=multi-user.target
`
	// hasty does not wait for anything, as hardly any service does: it stands on
	// base when the trees are shown.
	hasty = `[Unit]
DefaultDependencies=no
Before=deployx-restore.service
After=systemd-remount-fs.service
[Service]
Type=exec
WorkingDirectory=/srv/app
ExecStart=/bin/sleep infinity
[Install]
WantedBy=sysinit.target
`
)

// TestSystemd: on a machine that systemd boots, a machine that is killed comes
// back with its trees shown before services start, its agent connected, and no
// result lost.
func TestSystemd(t *testing.T) {
	b := startBoard(t, "python")
	m := newMachine(t)
	m.write("srv/app/config", "base\n")
	m.write("srv/copied/file", "base\n")
	m.write("etc/systemd/system/needy.service", needy)
	m.boot()
	m.must("deployx", "run", "--tree", "/srv/app", "--", "echo changed > config")
	m.must("deployx", "run", "--driver", "copy", "--tree", "/srv/copied", "--", "echo changed > file")
	expires(t, m)
	m.must("deployx", "install", "--url", b.url(), "--tree", "/srv/app", "--grace", "5s", "--reconnect-min", "20ms", "--reconnect-max", "200ms")
	m.must("systemctl", "enable", "--quiet", "needy.service")
	b.registered(1)
	verified(t, m)
	agentRestarts(t, b, m)
	lastWords(t, b, m)
	unitRestarts(t, m)
	staleRestart(t, m)

	m.kill()
	if got, err := os.ReadFile(m.path("srv/app/config")); err != nil || string(got) != "base\n" {
		t.Errorf("while it is off the tree's directory holds %q, %v", got, err)
	}
	b.start()
	before := len(b.find(about("agent_register", "")))
	m.boot()
	shownFirst(t, m)
	b.registered(before + 1)
	if c := b.one("command_completed", "unheard"); !c.ok() || c.str("output") != "heard\n" {
		t.Errorf("the result that was not acked: %v", c)
	}
	b.ask("execute_command", obj{"command_id": "after", "command": "cat /srv/app/config /srv/app/last"})
	if c := b.one("command_completed", "after"); c.str("output") != "changed\nlast\n" {
		t.Errorf("a command after the boot: %v", c)
	}
	takenAway(t, m)
}

// expires: without an agent a timer has old snapshots expire.
// What gc.service restricts does not keep gc from its work.
func expires(t *testing.T, m *machine) {
	m.must("deployx", "install")
	dir := "/etc/systemd/system/"
	if out := m.must("systemd-analyze", "verify", dir+"deployx-gc.service", dir+"deployx-gc.timer"); strings.Contains(out, "deployx") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if got := m.show("deployx-gc.timer", "ActiveState"); got != "active" {
		t.Errorf("the timer is %s", got)
	}
	m.write("etc/systemd/system/deployx-gc.service.d/soon.conf", "[Service]\nExecStart=\nExecStart=/usr/local/bin/deployx gc --all --keep-for 0s\n")
	m.must("systemctl", "daemon-reload")
	m.write("srv/old/file", "base\n")
	m.must("deployx", "run", "--tree", "/srv/old", "--", "echo old > file")
	m.must("systemctl", "start", "deployx-gc.service")
	if out, err := m.try("deployx", "rollback", "--tree", "/srv/old", "--last", "1"); err == nil || !strings.Contains(out, "nothing to roll back") {
		t.Errorf("rolling back what has expired: %v %s", err, out)
	}
	m.must("deployx", "forget", "--tree", "/srv/old", "--commit")
	if got := m.read("/srv/old/file"); got != "old\n" {
		t.Errorf("what it did is %q", got)
	}
}

// verified: systemd knows every line of the units, and the agent mounts where
// everybody sees it.
func verified(t *testing.T, m *machine) {
	dir := "/etc/systemd/system/"
	if out := m.must("systemd-analyze", "verify", dir+"deployx-restore.service", dir+"deployx-agent.service"); strings.Contains(out, "deployx") {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	for _, unit := range []string{"deployx-gc.timer", "deployx-gc.service"} {
		if got := m.show(unit, "ActiveState"); got != "inactive" {
			t.Errorf("beside the agent %s is %s", unit, got)
		}
	}
	pid := m.show("deployx-agent.service", "MainPID")
	ns := func(pid string) string { return m.must("readlink", "/proc/"+pid+"/ns/mnt") }
	if ns(pid) != ns("1") {
		t.Error("the agent has a mount namespace of its own")
	}
	// 32 and 33 are glibc's own: systemd cannot reset them, and hands on what
	// this test's process was started with.
	const glibcs = 1<<31 | 1<<32
	out := m.must("grep", "^SigIgn", "/proc/"+pid+"/status")
	if n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimPrefix(out, "SigIgn:")), 16, 64); err != nil || n&^glibcs != 0 {
		t.Errorf("the agent, and so its commands, ignore signals: %s %v", out, err)
	}
	if out := m.must("deployx", "install", "--url", m.url(), "--tree", "/srv/app", "--grace", "5s", "--reconnect-min", "20ms", "--reconnect-max", "200ms"); strings.Count(out, "is as it should be") != 2 {
		t.Errorf("a second install: %s", out)
	}
}

// url is the backend's, as the agent's unit has it.
func (m *machine) url() string {
	_, rest, _ := strings.Cut(m.show("deployx-agent.service", "ExecStart"), "--url=")
	url, _, _ := strings.Cut(rest, " ")
	return url
}

// agentRestarts: what commands left running goes on while the agent restarts
// (KillMode=process), and systemd starts an agent again that was killed.
func agentRestarts(t *testing.T, b *board, m *machine) {
	b.ask("execute_command", obj{"command_id": "job", "command": "cd /; sleep 12345 </dev/null >/dev/null 2>&1 & echo $!"})
	job := strings.TrimSpace(b.one("command_completed", "job").str("output"))
	if out := m.must("cat", "/proc/"+job+"/cgroup"); !strings.Contains(out, "deployx-agent.service") {
		t.Errorf("a command's process is outside the agent's cgroup: %s", out)
	}
	for i, how := range []string{"restart", "kill --signal=KILL --kill-whom=main"} {
		m.must(append(append([]string{"systemctl"}, strings.Fields(how)...), "deployx-agent.service")...)
		b.registered(i + 2)
		if out, err := m.try("sh", "-c", "kill -0 "+job); err != nil {
			t.Errorf("after %s the job is gone: %s", how, out)
		}
	}
	m.must("sh", "-c", "kill "+job)
}

// lastWords: a command ends while nobody hears the agent.
func lastWords(t *testing.T, b *board, m *machine) {
	b.ask("execute_command", obj{"command_id": "unheard", "command": "until test -e /run/go; do sleep 0.02; done; echo last > /srv/app/last; echo heard"})
	b.one("command_started", "unheard")
	b.kill()
	m.must("touch", "/run/go")
	journal := m.path("var/lib/deployx/agent/journal")
	m.eventually("the result is kept", func() bool {
		text, err := os.ReadFile(journal)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "unheard") && strings.Contains(line, "command_completed") {
				return true
			}
		}
		return false
	})
}

// living works in its tree, and pins it: it writes down what it was started with,
// and numbers, one after the other. All its writing is the shell's own: in a
// container nobody tells where processes came from that have ended.
const living = `[Unit]
StartLimitIntervalSec=0
[Service]
WorkingDirectory=/srv/live
ExecStart=/bin/sh -c 'read r <release; echo $r >running; n=$(tail -n 1 log); while :; do n=$((n+1)); echo $n >>log; sleep 0.01; done'
`

// unitRestarts: restarting a service that works in the tree is one of the commands.
// What the service wrote is kept when they are undone.
func unitRestarts(t *testing.T, m *machine) {
	must := func(args ...string) string { t.Helper(); return m.must(append([]string{"deployx"}, args...)...) }
	run := func(text string) string { t.Helper(); return must("run", "--json", "--tree", "/srv/live", "--", text) }
	running := func(want string) {
		t.Helper()
		m.eventually("the service runs "+want, func() bool { return m.read("/srv/live/running") == want+"\n" })
	}
	m.write("srv/live/release", "base\n")
	m.write("srv/live/log", "0\n")
	m.write("etc/systemd/system/living.service", living)
	m.must("systemctl", "daemon-reload")
	run("echo one >release")
	m.must("systemctl", "start", "living.service")
	running("one")
	for range 3 {
		out := run("echo two >release; systemctl restart living.service")
		if !strings.Contains(out, `"sealed"`) {
			t.Errorf("a command under a service: %s", out)
		}
		running("two")
		must("rollback", "--tree", "/srv/live", "--last", "1")
		if got := m.read("/srv/live/release"); got != "one\n" {
			t.Errorf("after the rollback the release is %q", got)
		}
		run("systemctl restart living.service")
		running("one")
	}
	m.must("systemctl", "stop", "living.service")
	lines := strings.Fields(m.read("/srv/live/log"))
	if len(lines) < 10 {
		t.Errorf("%d numbers", len(lines))
	}
	for i, line := range lines {
		if line != strconv.Itoa(i) {
			t.Fatalf("of %d numbers, %d is %s", len(lines), i, line)
		}
	}
	must("rollback", "--tree", "/srv/live", "--all", "--drift", "drop")
}

// released are services that go on with what a release has put in place: one runs a
// program from the tree, one reads a file of it and, as many do, has a mount namespace of
// its own. The third has a file that stays.
var released = map[string]string{
	"runs.service":  "ExecStart=/srv/rel/server infinity",
	"reads.service": "PrivateTmp=yes\nExecStart=/bin/sh -c 'exec sleep infinity 3</srv/rel/config'",
	"calm.service":  "ExecStart=/bin/sh -c 'exec sleep infinity 3</srv/rel/same'",
}

// staleRestart: a rollback names the units that go on with what it has taken back, and
// restarts these alone if it is asked to.
func staleRestart(t *testing.T, m *machine) {
	m.must("sh", "-c", "mkdir /srv/rel; cd /srv/rel; cp /bin/sleep server; echo old >config; echo same >same")
	for name, text := range released {
		m.write("etc/systemd/system/"+name, "[Service]\nType=exec\n"+text+"\n")
	}
	m.must("systemctl", "daemon-reload")
	pids := func() map[string]string {
		is := map[string]string{}
		for name := range released {
			is[name] = m.show(name, "MainPID")
		}
		return is
	}
	m.must("deployx", "run", "--tree", "/srv/rel", "--", "echo before >before")
	m.must("deployx", "run", "--tree", "/srv/rel", "--", "cp server new; echo >>new; mv new server; echo new >config.new; mv config.new config")
	for name := range released {
		m.must("systemctl", "start", name)
	}
	before := pids()
	var was, is struct {
		Stale []struct {
			PID             int
			Unit, Path, Why string
		}
		Restarted []string
	}
	undo := func(into any, args ...string) {
		t.Helper()
		out := m.must(append([]string{"deployx", "rollback", "--tree", "/srv/rel", "--last", "1", "--json"}, args...)...)
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "{") {
				out = line
			}
		}
		if err := json.Unmarshal([]byte(out), into); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	undo(&was)
	if now := pids(); len(was.Restarted) > 0 || !maps.Equal(before, now) {
		t.Errorf("restarted, and nobody asked for it: %v, %v to %v", was.Restarted, before, now)
	}
	m.must("deployx", "redo", "--tree", "/srv/rel")
	undo(&is, "--restart-stale")
	for _, u := range [][]struct {
		PID             int
		Unit, Path, Why string
	}{was.Stale, is.Stale} {
		var told []string
		for _, p := range u {
			told = append(told, fmt.Sprint(p.Unit, " ", p.PID, " ", p.Path, " ", p.Why))
		}
		slices.Sort(told)
		if want := []string{"reads.service " + before["reads.service"] + " config open file reverted", "runs.service " + before["runs.service"] + " server executable reverted"}; !slices.Equal(told, want) {
			t.Errorf("stale: %q, want %q", told, want)
		}
	}
	slices.Sort(is.Restarted)
	if !slices.Equal(is.Restarted, []string{"reads.service", "runs.service"}) {
		t.Errorf("restarted: %q", is.Restarted)
	}
	for name, pid := range pids() {
		if (pid == before[name]) != (name == "calm.service") || m.show(name, "ActiveState") != "active" {
			t.Errorf("%s: pid %s, and before %s; %s", name, pid, before[name], m.show(name, "ActiveState"))
		}
	}
	m.must("cmp", "/proc/"+m.show("runs.service", "MainPID")+"/exe", "/bin/sleep")
	m.must("grep", "old", "/proc/"+m.show("reads.service", "MainPID")+"/fd/3")
}

// shownFirst: the trees were shown before the service started that needs one.
func shownFirst(t *testing.T, m *machine) {
	if got := m.read("/var/log/needy"); got != "changed\n" {
		t.Errorf("the service found %q in the tree", got)
	}
	restored, started := m.moment("deployx-restore.service", "ActiveEnterTimestampMonotonic"), m.moment("needy.service", "ExecMainStartTimestampMonotonic")
	if restored > started {
		t.Errorf("shown %d µs after the service started", restored-started)
	}
	t.Logf("shown %d µs before the service started; restore took %d µs", started-restored,
		m.moment("deployx-restore.service", "ExecMainExitTimestampMonotonic")-m.moment("deployx-restore.service", "ExecMainStartTimestampMonotonic"))
	for tree, file := range map[string]string{"/srv/app": "config", "/srv/copied": "file"} {
		if got := m.read(filepath.Join(tree, file)); got != "changed\n" {
			t.Errorf("%s shows %q", tree, got)
		}
		if st := m.status(tree); st["agrees"] != true {
			t.Errorf("%s: %v", tree, st)
		}
	}
	if out := m.must("journalctl", "-b", "--no-pager"); strings.Contains(out, "ordering cycle") {
		t.Errorf("the units made a cycle:\n%s", out)
	}
}

// takenAway: uninstall refuses while the trees have layers; without the units
// the next boot shows base, and says so.
func takenAway(t *testing.T, m *machine) {
	out, err := m.try("deployx", "uninstall")
	if err == nil || !strings.Contains(out, "/srv/app") || !strings.Contains(out, "deployx commit") || strings.Contains(out, "/srv/copied") {
		t.Errorf("uninstall while trees have layers: %v\n%s", err, out)
	}
	if m.show("deployx-agent.service", "ActiveState") != "active" {
		t.Error("a refused uninstall stopped the agent")
	}
	m.must("deployx", "uninstall", "--keep-trees")
	for _, unit := range []string{"deployx-restore.service", "deployx-agent.service"} {
		if got := m.show(unit, "LoadState"); got != "not-found" {
			t.Errorf("%s is %s", unit, got)
		}
	}
	m.write("etc/systemd/system/hasty.service", hasty)
	m.must("systemctl", "enable", "--quiet", "hasty.service")
	m.kill()
	m.boot()
	if got := m.read("/var/log/needy"); got != "base\n" {
		t.Errorf("without the units the service found %q in the tree", got)
	}
	if st := m.status("/srv/app"); st["agrees"] != false || st["mounted"] != false {
		t.Errorf("status of a tree that was not shown: %v", st)
	}
	out = m.must("deployx", "restore", "--all")
	for _, unit := range []string{"hasty.service", "needy.service"} {
		if !strings.Contains(out, "(pid "+m.show(unit, "MainPID")+") works on /srv/app as it was before its layers") {
			t.Errorf("restore does not name %s, which works on base:\n%s", unit, out)
		}
	}
	if got := m.read("/srv/app/config"); got != "changed\n" {
		t.Errorf("shown by hand, the tree holds %q", got)
	}
}
