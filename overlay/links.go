package overlay

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Hard links. With index=on (overlayfs.rst, "Inode properties") the kernel
// copies a lower file that has several names up into one inode, which it keeps in
// w/index under the lower file's handle: whoever changes it through one name sees
// the change through all. The names that were not used stay in the lower layers
// and lead there by the index, which belongs to this upper alone. So before the
// layer becomes a lower, or is read as one, its files get the names that they lack:
// join has the kernel copy those up too, through the mount, which makes a link and
// leaves the times of the directory alone (ovl_link_up).
//
// The plain layout is without it: there the live upper becomes a lower, which
// the kernel refuses with an index (EBUSY, ovl_report_in_use).

// indexPatience is how long the kernel may take a mount of the same upper apart.
const indexPatience = 100 * time.Millisecond

// mount makes the superblock of s, with an index where that is to be had.
func (d *Driver) mount(s spec) (*os.File, error) {
	if d.name != "" {
		if err := freshOrigin(s.upper); err != nil {
			return nil, err
		}
		s.index = true
	}
	var m *os.File
	err := whileBusy(indexPatience, func() (err error) {
		m, err = d.has.newOverlay(s, d.stage())
		return err
	})
	if s.index && (errors.Is(err, unix.ESTALE) || errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENODATA)) { // ENODATA: a file of the index without an origin
		if errors.Is(err, unix.EBUSY) {
			d.merging.say(fmt.Sprintf("another mount of the same layer is somewhere: hard links of %q may come apart in this one", d.tree))
		}
		s.index = false
		m, err = d.has.newOverlay(s, d.stage())
	}
	return m, err
}

// freshOrigin has the kernel forget on which lower an upper was mounted first
// (ovl_verify_origin would refuse another with ESTALE): the layers below may have
// been merged since, into the same inodes.
func freshOrigin(upper string) error {
	err := unix.Lremovexattr(upper, private+"origin")
	if err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		return &fs.PathError{Op: "removexattr", Path: upper, Err: err}
	}
	return nil
}

// join gives the files of the shown open layer that have names in lower layers
// only all of their names. It costs a look at an empty directory if no file with
// more than one link was copied up. See aliases for what it costs else.
func (d *Driver) join(ctx context.Context, open snapshot.LayerID) error {
	if err := d.dropRelink(open); err != nil {
		return err
	}
	if d.name == "" {
		return nil
	}
	j, err := d.lacking(open)
	if err == nil && len(j.names) > 0 {
		err = d.dropAlone(open, &j)
	}
	if err != nil || len(j.names) == 0 {
		return err
	}
	found, err := d.aliases(ctx, open, j)
	if err != nil {
		return err
	}
	if err := d.copyUp(found); err != nil {
		return err
	}
	return d.noteJoined(open, j.names)
}

// joinShown is join for the shown layer, if it is among layers (oldest first).
func (d *Driver) joinShown(ctx context.Context, layers ...[]snapshot.LayerID) error {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return err
	}
	for _, some := range layers {
		for _, l := range slices.Backward(some) { // it is the newest, or none
			if l == open {
				return d.join(ctx, open)
			}
		}
	}
	return nil
}

// A joining is files of the open layer that may lack names.
type joining struct {
	names  []string // in the index
	of     map[string]copied
	upper  map[inode]bool
	lowers map[inode]bool
}

// copied is what an entry of the index stands for.
type copied struct {
	upper, lower inode
	layered      bool // the lower is a layer's file, not base's
}

func (d *Driver) indexDir(open snapshot.LayerID) string {
	return filepath.Join(d.dir(open, "w"), "index")
}

// joined is the file that lists what was searched for.
func (d *Driver) joined(open snapshot.LayerID) string { return d.dir(open, "joined") }

// lacking reads the index of the open layer: what has names that the upper has
// not, as the kernel counts them, and was not searched for yet. Names of a lower
// file only become fewer.
func (d *Driver) lacking(open snapshot.LayerID) (j joining, err error) {
	names, err := readNames(d.indexDir(open))
	if err != nil || len(names) == 0 {
		return j, err
	}
	names = d.alone.without(open, names)
	if len(names) == 0 {
		return j, nil
	}
	done := map[string]bool{}
	b, err := os.ReadFile(d.joined(open))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return j, err
	}
	for line := range strings.Lines(string(b)) {
		done[strings.TrimSuffix(line, "\n")] = true
	}
	j.of, j.upper, j.lowers = map[string]copied{}, map[inode]bool{}, map[inode]bool{}
	for _, name := range names {
		if !done[name] {
			if err := d.lacks(open, name, &j); err != nil {
				return j, err
			}
		}
	}
	return j, nil
}

func readNames(dir string) ([]string, error) {
	f, err := openAt(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// lacks adds an entry of the index to j, if its file lacks names: the kernel
// keeps by how much their number differs from the upper's links, of which the
// index has one (ovl_get_nlink).
func (d *Driver) lacks(open snapshot.LayerID, name string, j *joining) error {
	f, err := openAt(unix.AT_FDCWD, filepath.Join(d.indexDir(open), name), unix.O_PATH|unix.O_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	n, err := xattr(f, private+"nlink")
	if err != nil || bytes.HasPrefix(n, []byte("U-")) {
		return err
	}
	lower, layered, err := d.lowerOf(name)
	if err != nil || lower == (inode{}) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &fs.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	upper := inode{st.Dev, st.Ino}
	j.names, j.of[name] = append(j.names, name), copied{upper, lower, layered}
	j.upper[upper], j.lowers[lower] = true, true
	return nil
}

// handleHead is what stands before the handle in overlayfs's handle of a lower file
// (struct ovl_fb): version, magic, length, flags, type, the file system's UUID.
const handleHead = 5 + 16

// lowerHandle is the lower file's own handle in a longer overlayfs one.
func lowerHandle(b []byte) unix.FileHandle {
	return unix.NewFileHandle(int32(b[4]), b[handleHead:])
}

// lowerOf finds the lower file of an entry of the index, whose name is the
// file's handle in hexadecimal (see handleHead). Zero if it has gone. layered means
// that one of its names is known to lie in a layer; it may be so without that.
func (d *Driver) lowerOf(name string) (file inode, layered bool, err error) {
	b, err := hex.DecodeString(name)
	if err != nil || len(b) <= handleHead {
		return inode{}, false, nil // a file that is being made
	}
	handle := lowerHandle(b)
	for _, dir := range []string{d.layers, d.base()} {
		at, err := os.Open(dir)
		if err != nil {
			return inode{}, false, err
		}
		fd, err := unix.OpenByHandleAt(int(at.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
		at.Close() //nolint:errcheck // read only
		if err != nil {
			continue // another file system's, or gone
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		path, _ := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)) //nolint:errcheck // then it is not known
		unix.Close(fd)                                              //nolint:errcheck // O_PATH
		if err != nil {
			return inode{}, false, os.NewSyscallError("fstat", err)
		}
		return inode{st.Dev, st.Ino}, within(path, d.layers) && !strings.HasSuffix(path, " (deleted)"), nil
	}
	return inode{}, false, nil
}

// copyUp has the kernel copy names of the tree up, by setting a time of access
// to what it is; of what flags protect, by setting those (ovl_fileattr_set). What others
// took away or replaced meanwhile needs nothing any more.
func (d *Driver) copyUp(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	root, err := d.openShown()
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	for _, path := range paths {
		f, err := openBelow(root, path, unix.O_PATH)
		if err != nil {
			if errors.Is(err, unix.ENOMEM) || errors.Is(err, unix.EIO) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.EMFILE) {
				return err
			}
			continue
		}
		if err = nudge(int(f.Fd())); errors.Is(err, unix.EPERM) {
			err = reflag(f)
		}
		f.Close() //nolint:errcheck // O_PATH
		if err != nil && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("link %q: %w", path, err)
		}
	}
	return nil
}

func nudge(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	times := []unix.Timespec{st.Atim, {Nsec: unix.UTIME_OMIT}}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH))
}

// reflag sets the flags of what f (O_PATH) stands for to what they are.
func reflag(f *os.File) error {
	r, err := openAt(unix.AT_FDCWD, fdName(f), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer r.Close() //nolint:errcheck // nothing was written
	flags, err := unix.IoctlGetInt(int(r.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(r.Fd()), unix.FS_IOC_SETFLAGS, flags)
	}
	return os.NewSyscallError("ioctl FS_IOC_SETFLAGS", err)
}

// noteJoined keeps what need not be searched for again. It is not synced: what
// is lost is searched for.
func (d *Driver) noteJoined(open snapshot.LayerID, names []string) error {
	f, err := os.OpenFile(d.joined(open), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(names, "\n") + "\n")
	return errors.Join(err, f.Close())
}
