package shell

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// wires makes the files through which a shell and its owner exchange scripts,
// state and streams. The shell opens each by path, so that it inherits none of
// them and no command can hold on to one. A shell of the caller's own user gets
// /proc/<owner>/fd/N, which leaves nothing behind whatever happens; another user
// may not look there and gets files in a directory that only root can change.
type wires struct {
	sets    [2]scripts // used in turn: a shell may still read the end of the last one
	state   *scratch
	account *account
	dir     string // "" for the caller's own user
	count   int
}

// scripts are the files that hold one script.
type scripts struct{ main, arm, post *scratch }

// scratch is a regular file that the owner holds open and the shell opens by path.
type scratch struct {
	*os.File
	path string
}

func newWires(a *account) (*wires, error) {
	w := &wires{account: a}
	if a != nil {
		if err := w.makeDir(); err != nil {
			return nil, err
		}
	}
	var err error
	for i, f := range w.scratches() {
		if *f, err = w.scratch(strconv.Itoa(i)); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	return w, nil
}

func (w *wires) scratches() []**scratch {
	all := []**scratch{&w.state}
	for i := range w.sets {
		all = append(all, &w.sets[i].main, &w.sets[i].arm, &w.sets[i].post)
	}
	return all
}

// next is the set of files for the next script.
func (w *wires) next() scripts {
	w.sets[0], w.sets[1] = w.sets[1], w.sets[0]
	return w.sets[0]
}

// makeDir makes the directory for another user's shell: searchable by anyone who
// knows the name, written by root alone, so that no path in it can be swapped.
func (w *wires) makeDir() (err error) {
	base := "/run"
	if unix.Access(base, unix.W_OK) != nil {
		base = os.TempDir()
	}
	sweepDirs(base)
	if w.dir, err = os.MkdirTemp(base, fmt.Sprintf("%s%d-", prefix, os.Getpid())); err != nil {
		return err
	}
	return os.Chmod(w.dir, 0o711)
}

// sweepDirs removes what owners that were killed left in base.
func sweepDirs(base string) {
	dirs, err := filepath.Glob(filepath.Join(base, prefix+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if stale(filepath.Base(dir)) {
			release(dir)
			os.RemoveAll(dir) // a flat directory of ours: nothing can be mounted there
		}
	}
}

// release lets a shell go that waits in open(2) for the other end of a FIFO.
func release(dir string) {
	names, err := filepath.Glob(filepath.Join(dir, "stream*"))
	if err != nil {
		return
	}
	for _, name := range names {
		if f, err := os.OpenFile(name, os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0); err == nil {
			f.Close()
		}
	}
}

func (w *wires) scratch(name string) (*scratch, error) {
	if w.dir == "" {
		fd, err := unix.MemfdCreate("deployx-"+name, unix.MFD_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("memfd_create: %w", err)
		}
		return &scratch{os.NewFile(uintptr(fd), name), procPath(fd)}, nil
	}
	path := filepath.Join(w.dir, name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Chown(int(w.account.uid), int(w.account.gid)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &scratch{f, path}, nil
}

func (f *scratch) fill(text string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// limit on a shell's captured state; more is refused as damage, not read.
const maxState = 64 << 20

func (f *scratch) read() ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > maxState {
		return nil, fmt.Errorf("shell state of %d bytes is over the limit of %d", info.Size(), maxState)
	}
	buf := make([]byte, info.Size())
	n, err := f.ReadAt(buf, 0)
	if n == len(buf) {
		return buf, nil
	}
	return nil, err
}

// pipe is one stream of one command.
type pipe struct {
	r, w *os.File // the owner's ends; the one the shell uses stays open until the command ended
	path string   // what the shell opens
	name string   // to remove, "" for an anonymous pipe
	// opened is an inotify of a FIFO's opening, nil for an anonymous pipe: the last
	// writer must not go before, or the shell would wait for one.
	opened *os.File
}

// pipe makes a stream; out says that the shell writes to it.
func (w *wires) pipe(out bool) (*pipe, error) {
	if w.dir != "" {
		return w.fifo()
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	p := &pipe{r: os.NewFile(uintptr(fds[0]), "pipe"), w: os.NewFile(uintptr(fds[1]), "pipe")}
	p.path = procPath(fds[0])
	if out {
		p.path = procPath(fds[1])
	}
	return p, nil
}

func (w *wires) fifo() (*pipe, error) {
	w.count++
	p := &pipe{name: filepath.Join(w.dir, fmt.Sprint("stream", w.count))}
	p.path = p.name
	if err := unix.Mkfifo(p.name, 0o600); err != nil {
		return nil, fmt.Errorf("mkfifo: %w", err)
	}
	err := os.Chown(p.name, int(w.account.uid), int(w.account.gid))
	if err == nil {
		p.r, err = os.OpenFile(p.name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	}
	if err == nil {
		p.w, err = os.OpenFile(p.name, os.O_WRONLY|unix.O_NONBLOCK, 0)
	}
	if err == nil {
		p.opened, err = watchOpen(p.name)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// watchOpen gives a file that can be read once path was opened by anyone.
func watchOpen(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("inotify_init1: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		return nil, errors.Join(fmt.Errorf("inotify_add_watch %s: %w", path, err), f.Close())
	}
	return f, nil
}

// grow asks for a pipe of 1 MiB; an unprivileged caller over its limit
// (pipe(7), pipe-user-pages-soft) keeps the default 64 KiB.
func (p *pipe) grow() {
	if raw, err := p.r.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
	}
}

func (p *pipe) unlink() error {
	if p.name == "" {
		return nil
	}
	name := p.name
	p.name = ""
	return os.Remove(name)
}

func (p *pipe) close() error {
	var errs []error
	for _, f := range []*os.File{p.r, p.w, p.opened} {
		if f != nil {
			if err := f.Close(); !errors.Is(err, os.ErrClosed) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(append(errs, p.unlink())...)
}

func (w *wires) close() error {
	var errs []error
	for _, f := range w.scratches() {
		if *f != nil {
			errs = append(errs, (*f).Close())
		}
	}
	if w.dir != "" {
		errs = append(errs, os.RemoveAll(w.dir))
	}
	return errors.Join(errs...)
}

func procPath(fd int) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd) }
