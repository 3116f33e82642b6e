package overlay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

var _ snapshot.Watcher = (*Driver)(nil)

// Contents are watched on the overlay, which tells of files that are written
// to; names and attributes on the filesystem of the live upper, for overlayfs
// has no handles that fanotify could name a directory with (fanotify_mark(2),
// EOPNOTSUPP; measured on Linux 6.18).
const (
	contentEvents = unix.FAN_MODIFY | unix.FAN_CLOSE_WRITE
	nameEvents    = unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO | unix.FAN_ATTRIB | unix.FAN_ONDIR
)

// A watch reads events until it is stopped. Its goroutine owns the maps until
// then.
type watch struct {
	d              *Driver
	upper, index   string // the tree's root in the live upper, and the index of that
	content, names int
	mount          *os.File // of the upper's filesystem, to open handles with
	wake           *os.File
	done           chan error // receives once
	by             snapshot.Writers
	slacks         map[int32]int64
	forks          *forks
	ended          map[string][]int32 // by path: processes that had ended when they were to be looked at
	indexed        map[string][]int32 // by name in the index: who changed such a file
	dirs           map[string]string  // by handle: the directory below the tree; "" for one elsewhere
}

// inIndex stands for the index, of which the kernel names the files that it keeps there
// (see links.go): their attributes are changed by that name, whatever name of the tree
// was used.
const inIndex = "/"

// Watch collects who changes the tree. See snapshot.Watcher.
func (d *Driver) Watch(v snapshot.View) (func() (snapshot.Writers, error), error) {
	w := &watch{
		d: d, upper: filepath.Join(d.dir(v.Open, "u"), d.name), index: d.indexDir(v.Open), content: -1, names: -1, done: make(chan error, 1),
		by: snapshot.Writers{}, slacks: map[int32]int64{}, dirs: map[string]string{}, ended: map[string][]int32{}, indexed: map[string][]int32{},
	}
	w.forks = listen()
	err := w.open(d.tree, d.layers)
	if err != nil {
		w.close()
		return nil, err
	}
	r, wake, err := os.Pipe()
	if err != nil {
		w.close()
		return nil, err
	}
	w.wake = wake
	d.watching.Store(w)
	go func() {
		w.done <- w.read(int(r.Fd()))
		r.Close() //nolint:errcheck // a pipe
	}()
	return w.stop, nil
}

// open begins to watch the overlay that is shown on tree, and the filesystem of the
// layers.
func (w *watch) open(tree, layers string) (err error) {
	const flags = unix.FAN_CLASS_NOTIF | unix.FAN_CLOEXEC | unix.FAN_NONBLOCK | unix.FAN_UNLIMITED_QUEUE
	if w.content, err = unix.FanotifyInit(flags, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_LARGEFILE|unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("fanotify_init", err)
	}
	if err = unix.FanotifyMark(w.content, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, contentEvents, unix.AT_FDCWD, tree); err != nil {
		return os.NewSyscallError("fanotify_mark tree", err)
	}
	if w.names, err = unix.FanotifyInit(flags|unix.FAN_REPORT_DFID_NAME, unix.O_RDONLY|unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("fanotify_init names", err)
	}
	if err = unix.FanotifyMark(w.names, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, nameEvents, unix.AT_FDCWD, layers); err != nil {
		return os.NewSyscallError("fanotify_mark layers", err)
	}
	w.mount, err = os.Open(layers)
	return err
}

// spare keeps what is made in a directory of a copy from being told: it would have
// the reader woken up several times for each file. Nothing depends on it; kernels before
// 6.0 cannot.
func (w *watch) spare(dir *os.File) {
	const how = unix.FAN_MARK_ADD | unix.FAN_MARK_IGNORE_SURV | unix.FAN_MARK_EVICTABLE
	unix.FanotifyMark(w.names, how, nameEvents|unix.FAN_EVENT_ON_CHILD, int(dir.Fd()), "") //nolint:errcheck // see above
}

func (w *watch) close() {
	if w.forks != nil {
		w.forks.close()
	}
	for _, fd := range []int{w.content, w.names} {
		if fd >= 0 {
			unix.Close(fd) //nolint:errcheck // nothing was written
		}
	}
	for _, f := range []*os.File{w.mount, w.wake} {
		if f != nil {
			f.Close() //nolint:errcheck // nothing was written
		}
	}
}

// stop reads what is there and gives the result.
func (w *watch) stop() (snapshot.Writers, error) {
	w.wake.Write([]byte{0}) //nolint:errcheck // the reader is there
	err := <-w.done
	w.d.watching.CompareAndSwap(w, nil)
	w.d.gone.Go(w.close) // the kernel takes ten milliseconds and more to give marks up
	return w.by, err
}

// read reads events until wake can be read, and then what is left of them.
func (w *watch) read(wake int) error {
	buf := make([]byte, 64<<10)
	poll := []unix.PollFd{{Fd: int32(w.content), Events: unix.POLLIN}, {Fd: int32(w.names), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}, {Fd: int32(w.forks.fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		last := poll[2].Revents != 0
		for _, fd := range []int{w.content, w.names} {
			if err := w.drain(fd, buf); err != nil {
				return err
			}
		}
		w.forks.drain(buf) // last: who changed something was made before
		if last {
			if err := w.resolve(); err != nil {
				return err
			}
			w.settle()
			return nil
		}
	}
}

func (w *watch) drain(fd int, buf []byte) error {
	for {
		n, err := unix.Read(fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("read fanotify", err)
		}
		if err := w.events(buf[:n]); err != nil {
			return err
		}
	}
}

// events takes struct fanotify_event_metadata, one after the other
// (fanotify(7)).
func (w *watch) events(b []byte) error {
	const size = 24
	for len(b) >= size {
		length := binary.NativeEndian.Uint32(b)
		mask := binary.NativeEndian.Uint64(b[8:])
		fd, pid := int32(binary.NativeEndian.Uint32(b[16:])), int32(binary.NativeEndian.Uint32(b[20:]))
		switch {
		case length < size || int(length) > len(b):
			return fmt.Errorf("fanotify: an event of %d bytes", length)
		case mask&unix.FAN_Q_OVERFLOW != 0:
			return errors.New("fanotify: events were lost")
		case fd >= 0:
			w.file(fd, pid)
		default:
			w.named(b[size:length], mask&(nameEvents&^unix.FAN_ATTRIB) == unix.FAN_ONDIR, pid)
			if mask&unix.FAN_ONDIR != 0 && mask&(unix.FAN_MOVED_FROM|unix.FAN_MOVED_TO) != 0 {
				clear(w.dirs) // their paths are others now
			}
		}
		b = b[length:]
	}
	return nil
}

// file takes an event that came with a descriptor, and closes it.
func (w *watch) file(fd, pid int32) {
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd)))
	unix.Close(int(fd)) //nolint:errcheck // read only
	if rel, ok := strings.CutPrefix(strings.TrimSuffix(path, " (deleted)"), w.d.tree+"/"); err == nil && ok && int(pid) != os.Getpid() {
		w.note(rel, pid)
	}
}

// named takes the information records of an event: a directory's handle and a
// name (struct fanotify_event_info_fid). self: only the attributes of a directory
// were changed, as overlayfs does itself when it copies up what is in it.
func (w *watch) named(b []byte, self bool, pid int32) {
	const head = 4 + 8 // type, length, file system
	for len(b) >= head+8 {
		length := int(binary.NativeEndian.Uint16(b[2:]))
		if length < head+8 || length > len(b) {
			return
		}
		size := int(binary.NativeEndian.Uint32(b[head:]))
		if b[0] == unix.FAN_EVENT_INFO_TYPE_DFID_NAME && head+8+size <= length && int(pid) != os.Getpid() {
			kind := int32(binary.NativeEndian.Uint32(b[head+4:]))
			name, _, _ := bytes.Cut(b[head+8+size:length], []byte{0})
			switch dir := w.dir(kind, b[head+8:head+8+size]); dir {
			case "":
			case inIndex:
				w.slack(pid) // while it is there
				w.indexed[string(name)] = append(w.indexed[string(name)], pid)
			default:
				path := strings.TrimSuffix(join(dir, string(name)), "/.")
				if self {
					path += "/."
				}
				w.note(path, pid)
			}
		}
		b = b[length:]
	}
}

// dir finds a directory of the tree by its handle; "" if it is another.
func (w *watch) dir(kind int32, handle []byte) string {
	key := fmt.Sprint(kind) + string(handle)
	if dir, ok := w.dirs[key]; ok {
		return dir
	}
	fd, err := unix.OpenByHandleAt(int(w.mount.Fd()), unix.NewFileHandle(kind, handle), unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "" // it has gone
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	unix.Close(fd) //nolint:errcheck // O_PATH
	dir := ""
	if path == w.index && err == nil {
		dir = inIndex
	} else if path == w.upper && err == nil {
		dir = "."
	} else if rel, ok := strings.CutPrefix(path, w.upper+"/"); ok {
		dir = rel
	}
	w.dirs[key] = dir
	return dir
}

func (w *watch) note(path string, pid int32) {
	if slack := w.slack(pid); slack != 0 {
		w.add(path, slack)
	} else if !slices.Contains(w.ended[path], pid) {
		w.ended[path] = append(w.ended[path], pid)
	}
}

func (w *watch) add(path string, slack int64) {
	if !slices.Contains(w.by[path], slack) {
		w.by[path] = append(w.by[path], slack)
	}
}

// slack is a process's timer slack, as it was when it was first asked for.
func (w *watch) slack(pid int32) int64 {
	slack, ok := w.slacks[pid]
	switch {
	case ok:
		return slack
	case pid == 0: // of a pid namespace that is not below this one
		slack = defaultSlack
	default:
		slack = timerSlack(pid)
	}
	w.slacks[pid] = slack
	return slack
}

// resolve notes the tree's names of what was changed by one in the index.
func (w *watch) resolve() error {
	if len(w.indexed) == 0 {
		return nil
	}
	by := map[uint64][]int32{}
	for name, pids := range w.indexed {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(w.index, name), &st); err == nil { // else it has no name any more
			by[st.Ino] = append(by[st.Ino], pids...)
		}
	}
	root, err := openDir(w.upper)
	if missing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // O_PATH
	return eachName(root, ".", func(path string, ino uint64) {
		for _, pid := range by[ino] {
			w.note(path, pid)
		}
	})
}

// settle finds out about processes that had ended.
func (w *watch) settle() {
	for path, pids := range w.ended {
		for _, pid := range pids {
			w.add(path, w.origin(pid))
		}
	}
}

// origin is the timer slack that a process must have had, for it has it from the
// one that made it; or, negative, the process that it came from, if that was there
// before the watch began and has ended too; 0 if nothing is known. So it is with
// what we have started ourselves, which may be a shell that ended.
func (w *watch) origin(pid int32) int64 {
	for range 1000 { // numbers may be used again
		parent, ok := w.forks.from[pid]
		switch {
		case ok && int(parent) == os.Getpid():
			return 0
		case ok:
			if slack := w.slack(parent); slack != 0 {
				return slack
			}
			pid = parent
		case w.forks.whole:
			return -int64(pid)
		default:
			return 0
		}
	}
	return 0
}

const defaultSlack = 50_000 // ns: prctl(2), PR_SET_TIMERSLACK

// timerSlack is a process's, 0 if it has ended.
func timerSlack(pid int32) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", pid))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
