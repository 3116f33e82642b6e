package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/internal/mounts"
)

// moveMountBeneath is MOVE_MOUNT_BENEATH of linux/mount.h (kernel 6.5).
const moveMountBeneath = 0x200

// features are the kernel interfaces that newer kernels have. Each is used
// until the kernel refuses it; tests clear them to force the old way.
type features struct {
	lowerFD  bool // FSCONFIG_SET_FD for layers, 6.13
	lowerdir bool // one lowerdir+ per layer, 6.5 (else mount(2) with a bounded string)
	beneath  bool // MOVE_MOUNT_BENEATH, 6.5
	cloneAny bool // open_tree clones of a mount that is attached nowhere, 6.15
	loadAny  bool // mounts can be attached to one that is attached nowhere, 6.15
	mapsDev  bool // /proc/PID/maps tells the overlay's device and not a layer's, 6.8
	uniqueID bool // STATX_MNT_ID_UNIQUE, 6.8 (else the next mount gets the id of one that is gone)
}

func allFeatures() features {
	return features{lowerFD: true, lowerdir: true, beneath: true, cloneAny: true, loadAny: true, mapsDev: true, uniqueID: true}
}

// spec is an overlay superblock to make: lowers newest first.
type spec struct {
	source      string
	upper, work string // "" for a read-only view of the lowers
	lowers      []string
	index       bool // keep the names of a lower file together when it is copied up
}

// options that are passed explicitly because hosts differ in their defaults
// (design.md, Options).
var fixedOptions = [][2]string{{"redirect_dir", "on"}, {"metacopy", "on"}, {"xino", "auto"}}

func (s *spec) options() [][2]string {
	index := "off"
	if s.index {
		index = "on"
	}
	return append(slices.Clone(fixedOptions), [2]string{"index", index})
}

// newOverlay makes the superblock and a detached mount of it. No layer is
// named by a path that the kernel would parse: `:`, `,`, `\` and length are of
// no account.
func (f *features) newOverlay(s spec, stage string) (*os.File, error) {
	dirs, err := openSpec(s)
	if err != nil {
		return nil, err
	}
	defer dirs.close()
	if f.lowerdir {
		m, err := f.fsmount(s, dirs)
		if !errors.Is(err, errNoLowerdir) {
			return m, err
		}
		f.lowerdir = false
	}
	return mountByString(s, dirs, stage)
}

type specDirs struct {
	lowers      []*os.File
	upper, work *os.File
}

func openSpec(s spec) (d specDirs, err error) {
	defer func() {
		if err != nil {
			d.close()
		}
	}()
	for _, l := range s.lowers {
		f, err := openDir(l)
		if err != nil {
			return d, err
		}
		d.lowers = append(d.lowers, f)
	}
	if s.upper == "" {
		return d, nil
	}
	if d.upper, err = openDir(s.upper); err != nil {
		return d, err
	}
	d.work, err = openDir(s.work)
	return d, err
}

func (d *specDirs) close() {
	for _, f := range append(d.lowers, d.upper, d.work) {
		if f != nil {
			f.Close() //nolint:errcheck // O_PATH, nothing was written
		}
	}
}

func openDir(path string) (*os.File, error) {
	return openAt(unix.AT_FDCWD, path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW)
}

func openAt(dir int, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat(dir, path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

var errNoLowerdir = errors.New("the kernel has no lowerdir+ (before 6.5)")

func (f *features) fsmount(s spec, d specDirs) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen overlay", err)
	}
	ctx := os.NewFile(uintptr(fd), "fsopen overlay")
	defer ctx.Close() //nolint:errcheck // holds nothing that must last
	if err := f.configure(fd, s, d); err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, explain(fd, "create overlay", err)
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, explain(fd, "fsmount overlay", err)
	}
	return os.NewFile(uintptr(m), "overlay mount"), nil
}

func (f *features) configure(fd int, s spec, d specDirs) error {
	if err := unix.FsconfigSetString(fd, "source", s.source); err != nil {
		return explain(fd, "set source", err)
	}
	for _, o := range s.options() {
		if err := unix.FsconfigSetString(fd, o[0], o[1]); err != nil {
			return explain(fd, "set "+o[0], err)
		}
	}
	for i, l := range d.lowers {
		err := f.setDir(fd, "lowerdir+", l)
		if i == 0 && (errors.Is(err, unix.EINVAL) || errors.Is(err, errNoLowerdir)) {
			return errNoLowerdir
		}
		if err != nil {
			return explain(fd, "add layer "+l.Name(), err)
		}
	}
	if d.upper == nil {
		return nil
	}
	if err := f.setDir(fd, "upperdir", d.upper); err != nil {
		return explain(fd, "set upper "+s.upper, err)
	}
	if err := f.setDir(fd, "workdir", d.work); err != nil {
		return explain(fd, "set work "+s.work, err)
	}
	return nil
}

// setDir names a directory by its descriptor, and where the kernel cannot
// (before 6.13), by a name that stands for the descriptor. An overlay of before
// 6.5 knows no fsconfig: the kernel keeps a string for it, takes anything in there
// until the end, and no descriptors (EOPNOTSUPP, fsconfig in fs/fsopen.c).
func (f *features) setDir(fd int, key string, dir *os.File) error {
	if f.lowerFD {
		err := unix.FsconfigSetFd(fd, key, int(dir.Fd()))
		if errors.Is(err, unix.EOPNOTSUPP) {
			f.lowerFD = false
			return errNoLowerdir
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EBADF) { // which 6.12 says of any O_PATH
			return err
		}
		f.lowerFD = false
	}
	return unix.FsconfigSetString(fd, key, fdName(dir))
}

func fdName(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

// mountByString is the way of kernels before 6.5: mount(2) on a private
// directory, from which a detached clone is taken. The kernel cuts the string
// at one page and mounts fewer layers without a word, so its length is checked.
func mountByString(s spec, d specDirs, stage string) (*os.File, error) {
	names := make([]string, len(d.lowers))
	for i, l := range d.lowers {
		names[i] = fdName(l)
	}
	opts := "lowerdir=" + strings.Join(names, ":")
	if d.upper != nil {
		opts += ",upperdir=" + fdName(d.upper) + ",workdir=" + fdName(d.work)
	}
	for _, o := range s.options() {
		opts += "," + o[0] + "=" + o[1]
	}
	if len(opts) >= os.Getpagesize()-1 {
		return nil, fmt.Errorf("mount overlay: %d layers need %d bytes of options, this kernel takes %d",
			len(s.lowers), len(opts), os.Getpagesize()-1)
	}
	if err := makeStage(stage); err != nil {
		return nil, err
	}
	if err := unix.Mount(s.source, stage, "overlay", 0, opts); err != nil {
		return nil, &fs.PathError{Op: "mount overlay", Path: stage, Err: err}
	}
	crash.Point("overlay.staged")
	c, err := openTree(unix.AT_FDCWD, stage, unix.OPEN_TREE_CLONE)
	return unstaged(c, errors.Join(err, clearStage(stage)))
}

// unstaged is a clone of what was on stage, unless something failed.
func unstaged(c *os.File, err error) (*os.File, error) {
	if err != nil && c != nil {
		c.Close() //nolint:errcheck // it dissolves
		c = nil
	}
	return c, err
}

// part is a detached mount of what name is in the detached mount m, which it
// closes where it must. Kernels before 6.15 clone only what is attached in our
// namespace: there m is on stage for a moment.
func (f *features) part(m *os.File, name, stage string) (*os.File, error) {
	if f.cloneAny {
		sub, err := openTree(int(m.Fd()), name, unix.OPEN_TREE_CLONE)
		if !errors.Is(err, unix.EINVAL) {
			return sub, err
		}
		f.cloneAny = false
	}
	if err := makeStage(stage); err != nil {
		return nil, err
	}
	if err := attach(m, stage, 0); err != nil {
		return nil, err
	}
	crash.Point("overlay.staged")
	c, err := openTree(unix.AT_FDCWD, filepath.Join(stage, name), unix.OPEN_TREE_CLONE)
	return unstaged(c, errors.Join(err, m.Close(), clearStage(stage))) // m would hold the mount
}

// makeStage makes the directory in which mounts are attached for a moment.
func makeStage(stage string) error {
	if err := os.MkdirAll(stage, 0o700); err != nil {
		return err
	}
	return clearStage(stage)
}

// clearStage takes off it what is attached, or was left by one who was killed.
func clearStage(stage string) error {
	if _, err := os.Lstat(stage); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for !sameMount(stage, filepath.Dir(stage)) {
		below, err := mounts.Below(stage)
		if err != nil {
			return err
		}
		for _, m := range slices.Backward(below) {
			if err := unmountSoon(m.Mountpoint, stagePatience); err != nil {
				return err
			}
		}
		if err := unmountSoon(stage, stagePatience); err != nil {
			return err
		}
	}
	return nil
}

// stagePatience is how long who looks at our descriptors in /proc (lsof, a look for
// another tree's holders) may hold what is on stage, which nobody else knows.
const stagePatience = time.Second

// unmountSoon unmounts what is held for a moment.
func unmountSoon(path string, patience time.Duration) error {
	err := whileBusy(patience, func() error { return unix.Unmount(path, unix.UMOUNT_NOFOLLOW) })
	if err != nil {
		return &fs.PathError{Op: "umount", Path: path, Err: err}
	}
	return nil
}

// whileBusy tries again as long as there is patience and the kernel says EBUSY.
func whileBusy(patience time.Duration, try func() error) error {
	for end := time.Now().Add(patience); ; {
		err := try()
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// openTree is open_tree(2): a handle on the mount at path, or with
// OPEN_TREE_CLONE a detached mount of what path names.
func openTree(dir int, path string, flags uint) (*os.File, error) {
	fd, err := unix.OpenTree(dir, path, flags|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return nil, &fs.PathError{Op: "open_tree", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// attach moves a detached mount onto path, or beneath the mount that is there.
func attach(m *os.File, path string, flags int) error {
	err := unix.MoveMount(int(m.Fd()), "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|flags)
	if err != nil {
		return &fs.PathError{Op: "move_mount", Path: path, Err: err}
	}
	return nil
}

// freeze makes the whole superblock of a mount read-only, in every namespace
// and through every bind mount, and syncs it. EBUSY if anybody has a file of it
// open for writing.
func freeze(m *os.File) error {
	fd, err := unix.Fspick(int(m.Fd()), "", unix.FSPICK_EMPTY_PATH|unix.FSPICK_CLOEXEC)
	if err != nil {
		return &fs.PathError{Op: "fspick", Path: m.Name(), Err: err}
	}
	ctx := os.NewFile(uintptr(fd), "fspick")
	defer ctx.Close() //nolint:errcheck // holds nothing that must last
	if err := unix.FsconfigSetFlag(fd, "ro"); err != nil {
		return explain(fd, "set ro", err)
	}
	if err := unix.FsconfigReconfigure(fd); err != nil {
		return explain(fd, "make read-only", err)
	}
	return nil
}

// explain adds what the kernel has to say in the context's message queue
// (fsopen(2): a read gives one message, "e …", "w …" or "i …").
func explain(fd int, step string, err error) error {
	buf := make([]byte, 1024)
	var said []string
	for {
		n, e := unix.Read(fd, buf)
		if e != nil || n <= 0 {
			break
		}
		said = append(said, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
	if len(said) > 0 {
		return fmt.Errorf("%s: %w (%s)", step, err, strings.Join(said, "; "))
	}
	return fmt.Errorf("%s: %w", step, err)
}
