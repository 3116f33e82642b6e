package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Stale is a process that goes on with a file of the tree that a rollback or a
// redo has replaced or removed: it should be restarted.
type Stale struct {
	PID  int    `json:"pid"`
	Unit string `json:"unit,omitempty"` // the systemd unit that it belongs to
	Name string `json:"name"`           // comm, see proc_pid_comm(5)
	Path string `json:"path"`           // below the tree
	Why  string `json:"why"`            // "executable reverted", "open file removed", …
}

// A hand is one way in which one process has a file of the tree.
type hand struct {
	pid  int
	how  string
	path string // below the tree, as it was opened
	old  bool   // the tree did not show this file any more, even before
	stat unix.Statx_t
}

// A sight is the tree before it is changed, so that afterwards processes can be
// told that go on with what it showed then.
type sight struct {
	tree  string
	mount uint64
	views map[uint64]bool // mounts that showed the tree before
	tells snapshot.Viewer // of these; nil if the kernel has no ids for that
	dev   string          // as proc_pid_maps(5) writes it
	hands []hand
	// pinned: the tree is restored in place, where what is reverted becomes
	// another inode.
	pinned bool
	taken  bool // hands were looked for before: afterwards they have lost their names
}

const statxHand = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID | unix.STATX_MNT_ID_UNIQUE

// look takes the sight. Where the tree is changed in place a replaced file's name
// is lost, so that processes are looked at before; where a mount is swapped they
// are known by the old mount, and looked at when the tree shows the new one.
func (s *Session) look() (g sight) {
	g.tree = s.o.Tree.Path
	_, limit := s.drv.Depth(snapshot.View{})
	if limit > 0 && s.rec.Head().Open == "" {
		return g // a plain directory: there is no mount to know anybody by
	}
	var st unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, g.tree, unix.AT_SYMLINK_NOFOLLOW, statxHand, &st) != nil {
		return g
	}
	if v, ok := s.drv.(snapshot.Viewer); ok && st.Mask&unix.STATX_MNT_ID_UNIQUE != 0 {
		g.tells = v
	}
	g.mount, g.dev = st.Mnt_id, fmt.Sprintf(" %02x:%02x ", st.Dev_major, st.Dev_minor)
	if limit == 0 {
		g.taken = true
		g.hands = g.find()
	}
	return g
}

// stale compares what processes have with what the tree shows now. It costs one
// look at every process, and is done when the tree is shown already. undone lists
// what was undone: it is asked only if a process has a file that the tree did not
// show any more even before.
func (g sight) stale(undone func() ([]snapshot.Change, error)) (list []Stale) {
	if g.mount == 0 {
		return nil
	}
	if !g.taken {
		g.hands = g.find()
	}
	type one struct {
		pid  int
		path string
	}
	told := map[one]bool{}
	var f *footprint
	for _, h := range g.hands {
		what := g.fate(h)
		if what == "" || told[one{h.pid, h.path}] {
			continue
		}
		if h.old && f == nil {
			changes, err := undone()
			if err != nil {
				continue
			}
			all := footprintOf(changes, true)
			f = &all
		}
		if h.old && !f.touched[h.path] && !f.covers(h.path) {
			continue
		}
		told[one{h.pid, h.path}] = true
		list = append(list, Stale{h.pid, unitOf(h.pid), commOf(h.pid), h.path, h.how + " " + what})
	}
	return list
}

// fate tells what became of the file that a process has; "" if the tree still
// shows it.
func (g sight) fate(h hand) string {
	var now unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, filepath.Join(g.tree, h.path), unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &now)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return "removed"
	case err != nil:
		return ""
	case now.Mode&unix.S_IFMT != h.stat.Mode&unix.S_IFMT:
		return "reverted"
	case now.Ino != h.stat.Ino:
		if h.old && g.pinned && now.Size == h.stat.Size && now.Mtime == h.stat.Mtime {
			return "" // what it has is what was put back, as another inode
		}
		return "reverted"
	case now.Mode&unix.S_IFMT == unix.S_IFDIR: // in place, and entries come and go in it
		return ""
	case g.pinned: // the same inode: what it writes itself is no reversion
		return ""
	case now.Size != h.stat.Size || now.Mtime != h.stat.Mtime:
		return "reverted"
	}
	return ""
}

// find looks at every process but this one.
func (g sight) find() (hands []hand) {
	if g.tells != nil {
		g.views = g.tells.Views() // the one that has just been left, too
	}
	names, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, dir := range names {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		hands = append(hands, g.of(pid, dir)...)
	}
	return hands
}

func (g sight) of(pid int, dir string) (hands []hand) {
	for _, l := range [][2]string{{"exe", "executable"}, {"cwd", "working directory"}, {"root", "root directory"}} {
		hands = g.add(hands, pid, l[1], dir+"/"+l[0])
	}
	for _, at := range g.mapped(dir) {
		hands = g.add(hands, pid, "mapped file", dir+"/map_files/"+at)
	}
	fds, err := os.ReadDir(dir + "/fd")
	if err != nil {
		return hands // it has ended, or is not ours to look at
	}
	for _, fd := range fds {
		hands = g.add(hands, pid, "open file", dir+"/fd/"+fd.Name())
	}
	return hands
}

// mapped lists the mappings of files that may be the tree's, as map_files names
// them.
func (g sight) mapped(dir string) (ranges []string) {
	b, err := os.ReadFile(dir + "/maps")
	if err != nil {
		return nil
	}
	for line := range bytes.Lines(b) {
		if !bytes.Contains(line, []byte(g.dev)) && !bytes.Contains(line, []byte(" "+g.tree+"/")) && !(len(g.views) > 0 && bytes.Contains(line, []byte(" 00:"))) {
			continue // an overlay has a device without a major number
		}
		// map_files leaves out the zeros that maps writes (proc_pid_map_files(5)).
		from, rest, _ := bytes.Cut(line, []byte("-"))
		to, _, _ := bytes.Cut(rest, []byte(" "))
		ranges = append(ranges, trimZeros(from)+"-"+trimZeros(to))
	}
	return ranges
}

func trimZeros(hex []byte) string {
	if s := strings.TrimLeft(string(hex), "0"); s != "" {
		return s
	}
	return "0"
}

// add takes what a link below /proc leads to, if that is the tree's.
func (g sight) add(hands []hand, pid int, how, link string) []hand {
	h := hand{pid: pid, how: how}
	err := unix.Statx(unix.AT_FDCWD, link, unix.AT_NO_AUTOMOUNT, statxHand, &h.stat)
	if err != nil {
		return hands
	}
	target, err := os.Readlink(link)
	if err != nil || !strings.HasPrefix(target, "/") {
		return hands
	}
	target, h.old = strings.CutSuffix(target, " (deleted)")
	shown, view := h.stat.Mnt_id == g.mount, g.views[h.stat.Mnt_id]
	h.old = h.old || !shown && (view || !g.taken)
	switch {
	case inside(target, g.tree) && (shown || g.seenBy(pid)):
		if h.path, err = filepath.Rel(g.tree, target); err != nil {
			return hands
		}
	case view || shown && !g.taken: // a mount that is shown no more names its files from its own root
		if h.path = strings.TrimPrefix(target, "/"); h.path == "" {
			h.path = "."
		}
	default:
		return hands
	}
	return append(hands, h)
}

// seenBy tells whether the tree's path leads a process to the tree, and not to a
// directory of its own in another mount namespace.
func (g sight) seenBy(pid int) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	ours, err := os.Readlink("/proc/self/ns/mnt")
	theirs, e := os.Readlink(dir + "/ns/mnt")
	if err != nil || e != nil || ours == theirs {
		return err == nil && e == nil
	}
	var a, b unix.Stat_t
	return unix.Stat(g.tree, &a) == nil && unix.Stat(dir+"/root"+g.tree, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

func commOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(b), "\n")
}

// unitOf finds a process's systemd unit by its control group; "" if it has none.
func unitOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return ""
	}
	return unitIn(string(b))
}

// unitIn reads proc_pid_cgroup(5): the unit is the last component that is one,
// in the hierarchy that systemd uses.
func unitIn(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		parts := strings.Split(f[2], "/")
		for _, p := range slices.Backward(parts) {
			if strings.HasSuffix(p, ".service") || strings.HasSuffix(p, ".scope") {
				return p
			}
		}
	}
	return ""
}

// restartWait bounds how long systemctl may take.
const restartWait = 2 * time.Minute

// A NotRestarted is what --restart-stale could not restart, and why.
type NotRestarted struct {
	Unit  string `json:"unit,omitempty"` // or a process that belongs to none:
	PID   int    `json:"pid,omitempty"`
	Name  string `json:"name,omitempty"`
	Error string `json:"error"`
}

// RestartStale restarts the units that stale processes belong to, each once and by
// itself, so that it can be told which one would not. It returns the names of those
// that were restarted, and what was not.
func RestartStale(ctx context.Context, stale []Stale) (units []string, not []NotRestarted) {
	ctx, cancel := context.WithTimeout(ctx, restartWait)
	defer cancel()
	asked := map[string]bool{}
	for _, p := range stale {
		service := strings.HasSuffix(p.Unit, ".service")
		who := p.Unit
		if !service {
			who = strconv.Itoa(p.PID)
		}
		if asked[who] {
			continue
		}
		asked[who] = true
		if !service {
			not = append(not, NotRestarted{PID: p.PID, Name: p.Name, Error: "it belongs to no systemd service"})
		} else if err := restart(ctx, p.Unit); err != nil {
			not = append(not, NotRestarted{Unit: p.Unit, Error: err.Error()})
		} else {
			units = append(units, p.Unit)
		}
	}
	return units, not
}

func restart(ctx context.Context, unit string) error {
	out, err := exec.CommandContext(ctx, "systemctl", "restart", "--", unit).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return errors.New("this host has no systemctl")
	}
	if err != nil {
		return fmt.Errorf("systemctl restart: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// RestartError is the error of an undo that is done, where some of what goes on with
// the old files was not restarted; nil if all was.
func RestartError(not []NotRestarted) error {
	if len(not) == 0 {
		return nil
	}
	e := &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: "it is done, but not all that goes on with the files before was restarted:", Hint: "restart them by hand"}
	for _, n := range not {
		who := snapshot.Holder{PID: n.PID, Name: n.Name + n.Unit}.Who()
		e.Candidates = append(e.Candidates, who+": "+n.Error)
	}
	return e
}
