package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// A hold is one way in which one process holds the shown tree. Hard holds
// would split their process from the next view: it would go on writing, or
// creating by a relative path, where nobody looks any more. A file that is only
// read is a soft hold and no hindrance: overlayfs itself leaves such files on
// the old data after a copy-up. But one that has been removed in this view, or
// replaced, is hard too: as long as somebody has it the kernel makes no superblock
// read-only (sb_prepare_remount_readonly, s_remove_count), and freeze must.
type hold struct {
	snapshot.Holder
	link string // what to look at again, below /proc
	stat unix.Statx_t
	info string        // fdinfo: a position that moves tells a passer-by
	seen int           // looks that counted
	had  time.Duration // of a processor, when it was seized
	twin *os.File
	num  int // of the descriptor
}

// Holders names the processes that hold the shown tree so that a swap would
// split them from it.
func (d *Driver) Holders(ctx context.Context) ([]snapshot.Holder, error) {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return nil, err
	}
	for range holdLooks {
		busy, err := probe(d.tree)
		if err != nil || !busy {
			return nil, err
		}
		sub, err := d.submountsNow() // which make it busy too
		if err != nil {
			return nil, err
		}
		stuck := sub.stuck()
		sub.close()
		if len(stuck) > 0 {
			return stuck, nil
		}
		holds, soft, err := d.scan(sub)
		if err != nil {
			return nil, err
		}
		if stay := stayingHolds(holds); len(stay) > 0 {
			d.held = remembered{d.shown.id, time.Now(), stay}
			return named(stay), nil
		}
		if len(holds) > 0 || soft || len(sub.list) > 0 {
			return nil, nil
		}
		time.Sleep(holdPause)
	}
	return []snapshot.Holder{{Name: "kernel", How: "holds the mount without a process (a loop device, swap, an export, a descriptor in flight, or another mount namespace)"}}, nil
}

func (d *Driver) refuseHolders(ctx context.Context) error {
	h, err := d.Holders(ctx)
	if err != nil || len(h) == 0 {
		return err
	}
	return d.heldBy(h, nil)
}

func (d *Driver) heldBy(h []snapshot.Holder, cause error) *snapshot.Error {
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("%q is in use", d.tree), Err: cause, Holders: h,
		Hint: "stop these processes, move them out of the tree (cd /), or let deployx stop them with --on-pinned stop",
	}
}

// busy makes the error of a swap that the kernel did not agree to, with
// whoever can be found to be the reason.
func (d *Driver) busy(ctx context.Context, cause error) error {
	if !errors.Is(cause, unix.EBUSY) {
		return cause
	}
	sub, err := d.submountsNow()
	if err != nil {
		return errors.Join(cause, err)
	}
	holds, _, err := d.scan(sub)
	var h []snapshot.Holder
	for _, x := range holds {
		h = append(h, x.Holder)
	}
	return errors.Join(d.heldBy(h, cause), err, ctx.Err())
}

// probe asks the kernel whether anybody in this namespace holds the mount:
// umount2(2) with MNT_EXPIRE marks an idle mount and says EAGAIN, and a second
// such call would unmount it. So the mark is cleared before, in case a killed
// process left it, and after.
func probe(tree string) (busy bool, err error) {
	if err := touch(tree); err != nil {
		return false, err
	}
	err = unix.Unmount(tree, unix.MNT_EXPIRE|unix.UMOUNT_NOFOLLOW)
	if e := touch(tree); e != nil {
		return false, e
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case errors.Is(err, unix.EBUSY):
		return true, nil
	case err == nil:
		return false, fmt.Errorf("the expiry probe unmounted %q", tree)
	}
	return false, &fs.PathError{Op: "umount2 MNT_EXPIRE", Path: tree, Err: err}
}

// touch opens and closes the root, which clears the expiry mark.
func touch(tree string) error {
	f, err := openDir(tree)
	if err != nil {
		return err
	}
	return f.Close()
}

func statLink(link string) (st unix.Statx_t, err error) {
	err = unix.Statx(unix.AT_FDCWD, link, unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st)
	return st, err
}

// fdInfo reads /proc/PID/fdinfo/N for the link /proc/PID/fd/N.
func fdInfo(link string) string {
	dir, n := filepath.Split(link)
	if filepath.Base(dir) != "fd" {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(filepath.Clean(dir)), "fdinfo", n))
	if err != nil {
		return "gone"
	}
	return string(b)
}

// scan looks through every process for holds of the tree's mount. soft tells
// whether there are holds that do not matter.
func (d *Driver) scan(sub *submounts) (hard []hold, soft bool, err error) {
	ids, dev, err := d.ownMounts()
	if err != nil {
		return nil, false, err
	}
	s := scanner{ids: ids, dev: dev, tree: d.tree, sub: sub, mapsDev: d.has.mapsDev}
	pids, err := processes()
	if err != nil {
		return nil, false, err
	}
	for _, pid := range pids {
		s.process(pid)
	}
	if err := s.sockets(); err != nil {
		return nil, false, err
	}
	return s.hard, s.soft, nil
}

// processes are all but this one and the kernel's threads, which hold nothing and
// are many: they have no program (proc_pid_exe(5), ENOENT).
func processes() ([]int, error) {
	f, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	names, err := f.Readdirnames(-1)
	var pids []int
	var none [1]byte
	for _, n := range names {
		pid, e := strconv.Atoi(n)
		if e != nil || pid == os.Getpid() {
			continue
		}
		if _, e := unix.Readlinkat(int(f.Fd()), n+"/exe", none[:]); !errors.Is(e, unix.ENOENT) {
			pids = append(pids, pid)
		}
	}
	return pids, err
}

type scanner struct {
	ids  map[uint64]bool
	dev  uint64
	tree string
	sub  *submounts
	hard []hold
	soft bool

	mapsDev bool // see features
}

// process looks at one process. One that ends meanwhile holds nothing. A
// directory in a mount below the tree is a hold too: that mount comes along as a
// clone, and the way from there to what is mounted around it would be lost.
func (s *scanner) process(pid int) {
	dir := "/proc/" + strconv.Itoa(pid)
	for _, what := range []string{"cwd", "root"} {
		if st, ok := s.ours(dir + "/" + what); ok || s.sub.ids[st.Mnt_id] {
			s.add(pid, what, dir+"/"+what, st)
		}
	}
	for _, link := range descriptors(pid) {
		if st, ok := s.ours(link); ok || s.sub.ids[st.Mnt_id] && st.Mode&unix.S_IFMT == unix.S_IFDIR {
			s.descriptor(pid, link, st)
		}
	}
	s.mappings(pid)
}

// descriptors are the links below /proc to what a process has open.
func descriptors(pid int) []string {
	dir := "/proc/" + strconv.Itoa(pid) + "/fd"
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close() //nolint:errcheck // read only
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil
	}
	for i, n := range names {
		names[i] = dir + "/" + n
	}
	return names
}

// ours tells whether a link leads into the tree's mount: by the mount's id, or
// in other namespaces by the superblock's device.
func (s *scanner) ours(link string) (unix.Statx_t, bool) {
	st, err := statLink(link)
	if err != nil {
		return st, false
	}
	return st, s.ids[st.Mnt_id] || unix.Mkdev(st.Dev_major, st.Dev_minor) == s.dev
}

func (s *scanner) add(pid int, how, link string, st unix.Statx_t) {
	path, err := os.Readlink(link)
	if err != nil {
		path = ""
	}
	s.hard = append(s.hard, hold{
		Holder: snapshot.Holder{PID: pid, Name: comm(pid), How: how, Path: path},
		link:   link, stat: st, info: fdInfo(link),
	})
}

func comm(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(b), "\n")
}

// descriptor tells a hard hold from a soft one: a directory, a file that can
// be written, a lock (proc_pid_fdinfo(5)).
func (s *scanner) descriptor(pid int, link string, st unix.Statx_t) {
	info, n := fdInfo(link), filepath.Base(link)
	flags := fdFlags(info)
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR && flags&unix.O_PATH == 0:
		s.add(pid, "fd "+n+" (directory)", link, st)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		s.add(pid, "fd "+n+" (directory, O_PATH)", link, st)
	case flags&unix.O_PATH == 0 && flags&unix.O_ACCMODE != unix.O_RDONLY:
		s.add(pid, "fd "+n+" (write)", link, st)
	case strings.Contains(info, "\nlock:"):
		s.add(pid, "fd "+n+" (lock)", link, st)
	case removed(link):
		s.add(pid, "fd "+n+" (removed)", link, st)
	default:
		s.soft = true
	}
}

// removed tells whether a file has lost the name that it was opened by. Its link count
// does not tell, which may be that of a file below.
func removed(link string) bool {
	path, err := os.Readlink(link)
	return err == nil && strings.HasSuffix(path, deleted)
}

const deleted = " (deleted)" // proc_pid_fd(5), proc_pid_maps(5)

func fdFlags(info string) int {
	_, rest, ok := strings.Cut(info, "flags:")
	if !ok {
		return 0
	}
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseInt(strings.TrimSpace(line), 8, 64)
	if err != nil {
		return 0
	}
	return int(n)
}

// mappings finds shared writable mappings of files in the tree, which outlive
// the descriptor they were made with (proc_pid_maps(5)), and those of removed files.
func (s *scanner) mappings(pid int) {
	proc := "/proc/" + strconv.Itoa(pid)
	b, err := os.ReadFile(proc + "/maps")
	if err != nil {
		return
	}
	dev := fmt.Appendf(nil, " %02x:%02x ", unix.Major(s.dev), unix.Minor(s.dev))
	name := []byte(" " + strings.ReplaceAll(s.tree, "\n", `\012`) + "/")
	for line := range bytes.Lines(b) {
		if !(s.mapsDev && bytes.Contains(line, dev)) && !(bytes.Contains(line, name) && s.mapped(proc, line)) {
			continue
		}
		f := bytes.Fields(line)
		if len(f) < 5 || len(f[1]) != 4 || f[1][1] != 'w' || f[1][3] != 's' {
			s.readMapping(pid, proc, line)
			continue
		}
		path := ""
		if len(f) > 5 {
			path = string(bytes.TrimSuffix(line[bytes.Index(line, f[5]):], []byte("\n")))
		}
		s.hard = append(s.hard, hold{Holder: snapshot.Holder{PID: pid, Name: comm(pid), How: "shared mapping (write)", Path: path}})
	}
}

// readMapping is a mapping that cannot write, of the tree's.
func (s *scanner) readMapping(pid int, proc string, line []byte) {
	s.soft = true
	path, gone := strings.CutSuffix(string(line), deleted+"\n")
	if last := len(s.hard) - 1; !gone || last >= 0 && s.hard[last].PID == pid && strings.HasSuffix(path, strings.TrimSuffix(s.hard[last].Path, deleted)) {
		return // a program has several of one file
	}
	link := mapFile(proc, line)
	if st, err := statLink(link); err == nil {
		s.add(pid, "mapping (removed)", link, st)
	}
}

// mapped tells whether a line of maps is of a file in the tree's mount, which
// map_files knows on kernels that write another device there (proc_pid_map_files(5)).
func (s *scanner) mapped(proc string, line []byte) bool {
	_, ok := s.ours(mapFile(proc, line))
	return ok
}

// mapFile is the link of a line of maps; one that is not there if it cannot be read.
func mapFile(proc string, line []byte) string {
	var from, to uint64
	fmt.Sscanf(string(line), "%x-%x", &from, &to) //nolint:errcheck // see above
	return fmt.Sprintf("%s/map_files/%x-%x", proc, from, to)
}
