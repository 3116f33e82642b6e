package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// The units that install writes. docs/operations.md explains each line.
const (
	restoreUnit = "deployx-restore.service"
	agentUnit   = "deployx-agent.service"
	gcUnit      = "deployx-gc.service"
	gcTimer     = "deployx-gc.timer"

	// ours begins every unit that install wrote, and no other is overwritten or
	// removed.
	ours = "# Written by deployx install."
)

// unit is a file of systemd.
type unit struct {
	name, text string
	wantedBy   string // the target that pulls it in, or "": another unit starts it
}

// restoreText: local file systems come before it by local-fs.target, and
// everything with default dependencies comes after sysinit.target. It must not
// wait for a remote file system: those wait for the network, which waits for
// sysinit.target.
//
// A mount namespace of its own would keep the mounts from everybody, so nothing
// may be set here that makes one (systemd.exec(5)); nor a bounded set of
// capabilities: overlayfs does its work with those of the process that mounted.
const restoreText = ours + ` It rewrites this file: to change something, use
# systemctl edit deployx-restore.service
[Unit]
Description=Show the trees of deployx
DefaultDependencies=no
Conflicts=shutdown.target
RequiresMountsFor=%[1]s
After=local-fs.target%[2]s
Before=systemd-tmpfiles-setup.service sysinit.target shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=%[3]s
TimeoutStartSec=10min
PrivateMounts=no
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK
SystemCallArchitectures=native

[Install]
WantedBy=sysinit.target
`

// agentText: what restricts the agent restricts every command it runs, so that
// nothing is restricted here. SIGPIPE is not ignored, since commands inherit
// that. An OOM kill of a command's process must not stop the agent.
const agentText = ours + ` It rewrites this file: to change something, use
# systemctl edit deployx-agent.service
[Unit]
Description=Agent of deployx
Wants=deployx-restore.service
After=deployx-restore.service network.target nss-lookup.target remote-fs.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart=%[1]s
Restart=always
RestartSec=2
RestartPreventExitStatus=2
KillMode=process
TimeoutStopSec=%[2]d
Delegate=yes
OOMPolicy=continue
IgnoreSIGPIPE=no
PrivateMounts=no

[Install]
WantedBy=multi-user.target
`

// gcText and gcTimerText are for a host without an agent, which does the same. It
// may have to record a command that was cut off, which swaps a mount: no mount
// namespace, as above. RestrictNamespaces would keep it from asking in those of
// others who holds the tree.
const gcText = ours + ` It rewrites this file: to change something, use
# systemctl edit deployx-gc.service
[Unit]
Description=Let old snapshots of deployx expire
RequiresMountsFor=%[1]s
After=deployx-restore.service remote-fs.target

[Service]
Type=oneshot
ExecStart=%[2]s
Nice=19
IOSchedulingClass=idle
PrivateMounts=no
NoNewPrivileges=yes
MemoryDenyWriteExecute=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictAddressFamilies=AF_UNIX AF_NETLINK
SystemCallArchitectures=native
`

const gcTimerText = ours + ` It rewrites this file: to change something, use
# systemctl edit deployx-gc.timer
[Unit]
Description=Let old snapshots of deployx expire every hour

[Timer]
OnCalendar=hourly
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
`

// newRestoreUnit makes the unit that shows the trees of state again. mounts are
// the units of local mounts that trees are on.
func newRestoreUnit(binary, state string, mounts []string) unit {
	args := append([]string{binary, "restore", "--all"}, stateFlag(state)...)
	after := ""
	for _, m := range mounts {
		after += " " + m
	}
	text := fmt.Sprintf(restoreText, unitWord(state), after, commandLine(args))
	return unit{restoreUnit, text, "sysinit.target"}
}

// newGCUnits make the units that let old snapshots expire where no agent does.
func newGCUnits(binary, state string) []unit {
	args := append([]string{binary, "gc", "--all"}, stateFlag(state)...)
	return []unit{
		{gcUnit, fmt.Sprintf(gcText, unitWord(state), commandLine(args)), ""},
		{gcTimer, gcTimerText, "timers.target"},
	}
}

// newAgentUnit makes the unit of an agent that needs so long to stop.
func newAgentUnit(binary string, args []string, stop time.Duration) unit {
	args = append([]string{binary, "agent"}, args...)
	return unit{agentUnit, fmt.Sprintf(agentText, commandLine(args), int((stop+time.Second-1)/time.Second)), "multi-user.target"}
}

// unitsOfInstall are all that install may have written, in the order in which they
// are taken away.
func unitsOfInstall() []unit {
	return []unit{
		{name: gcTimer, wantedBy: "timers.target"},
		{name: gcUnit},
		{name: agentUnit, wantedBy: "multi-user.target"},
		{name: restoreUnit, wantedBy: "sysinit.target"},
	}
}

func stateFlag(state string) []string {
	if state == standardState {
		return nil
	}
	return []string{"--state=" + state}
}

// commandLine writes ExecStart, systemd.service(5): $ starts a variable.
func commandLine(args []string) string {
	var words []string
	for _, a := range args {
		words = append(words, strings.ReplaceAll(unitWord(a), "$", "$$"))
	}
	return strings.Join(words, " ")
}

// unitWord writes one word, systemd.syntax(7): % starts a specifier, and bytes that
// mean something are escaped as in C.
func unitWord(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if s != "" && !strings.ContainsFunc(s, needsQuotes) {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + `"`
}

func needsQuotes(r rune) bool {
	return r <= ' ' || r == 0x7f || strings.ContainsRune(`"'\;#`, r)
}

// mountUnit is the name of a mount point's unit: systemd.unit(5), "String
// escaping for inclusion in unit names".
func mountUnit(path string) string {
	path = strings.Trim(filepath.Clean(path), "/")
	if path == "" {
		return "-.mount"
	}
	var b strings.Builder
	for i := range len(path) {
		switch c := path[i]; {
		case c == '/':
			b.WriteByte('-')
		case c == '.' && i > 0, c == ':', c == '_', '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String() + ".mount"
}
