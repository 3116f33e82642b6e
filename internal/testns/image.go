package testns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// ImageOptions say what file system to make. The zero value is ext4 of 64 MiB.
type ImageOptions struct {
	Type   string // ext4 (default), xfs or btrfs
	Size   int64  // bytes; default, and least, what the type needs
	Inodes int    // the most files it can hold; ext4 only
	Mkfs   []string
	Flags  uintptr // mount(2) flags
	Data   string  // mount(2) options
	// Open opens the disk that it lies on, anew for each mount; default memory.
	Open func() (*os.File, error)
}

// Image is a file system of its own, behind a loop device, mounted
// on Dir. The device frees itself when it is unmounted or the namespace is
// gone, and the memory with the last descriptor: nothing stays after a kill -9.
type Image struct {
	Dir  string
	t    testing.TB
	o    ImageOptions
	file *os.File
}

// leastSize is what the mkfs tools accept, in bytes.
var leastSize = map[string]int64{"ext4": 64 << 20, "xfs": 320 << 20, "btrfs": 128 << 20}

// NewImage makes and mounts an image for one test, which unmounts it at its
// end. It needs the mkfs tool of the type; without it the test fails in CI and
// is skipped anywhere else.
func NewImage(t testing.TB, o ImageOptions) *Image {
	t.Helper()
	Need(t)
	if o.Type == "" {
		o.Type = "ext4"
	}
	if o.Size == 0 {
		o.Size = leastSize[o.Type]
	}
	i := &Image{Dir: t.TempDir(), t: t, o: o}
	if err := i.format(); err != nil {
		if errors.Is(err, exec.ErrNotFound) && !inCI() {
			t.Skipf("make a %s image: %v", o.Type, err)
		}
		t.Fatalf("make a %s image: %v", o.Type, err)
	}
	t.Cleanup(i.close)
	i.Mount()
	return i
}

// Mount mounts the image again after Unmount.
func (i *Image) Mount() {
	i.t.Helper()
	if err := i.open(); err != nil {
		i.t.Fatal(err)
	}
	dev, err := attach(i.file)
	if err != nil {
		i.t.Fatalf("loop device: %v", err)
	}
	defer dev.Close() //nolint:errcheck // the mount keeps it from here on
	if err := unix.Mount(dev.Name(), i.Dir, i.o.Type, i.o.Flags, i.o.Data); err != nil {
		i.t.Fatalf("mount %s on %q: %v", i.o.Type, i.Dir, err)
	}
}

// Unmount unmounts the image and fails the test when it is busy.
func (i *Image) Unmount() {
	i.t.Helper()
	if err := unix.Unmount(i.Dir, unix.UMOUNT_NOFOLLOW); err != nil {
		i.t.Fatalf("unmount %s from %q: %v", i.o.Type, i.Dir, err)
	}
}

func (i *Image) close() {
	if mounts, err := MountsBelow(i.Dir); err == nil && len(mounts) > 0 {
		i.Unmount()
	}
	if err := i.file.Close(); err != nil {
		i.t.Errorf("close image: %v", err)
	}
}

// open opens the disk; memory, a file that has no name, stays open.
func (i *Image) open() error {
	if i.o.Open != nil {
		f, err := i.o.Open()
		if err == nil && i.file != nil {
			err = i.file.Close()
		}
		i.file = f
		return err
	}
	if i.file != nil {
		return nil
	}
	fd, err := unix.MemfdCreate("image", unix.MFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	i.file = os.NewFile(uintptr(fd), "image")
	return nil
}

func (i *Image) format() error {
	if err := i.open(); err != nil {
		return err
	}
	if err := i.file.Truncate(i.o.Size); err != nil {
		return err
	}
	args := append([]string{"-q"}, i.o.Mkfs...)
	if i.o.Inodes > 0 {
		args = append(args, "-N", strconv.Itoa(i.o.Inodes))
	}
	if i.o.Type == "ext4" {
		args = append(args, "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard")
	}
	cmd := exec.Command("mkfs."+i.o.Type, append(args, "/dev/fd/3")...)
	cmd.ExtraFiles = []*os.File{i.file}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// loopTries bounds the race for a free loop device with the rest of the machine.
const loopTries = 20

// attach puts a loop device over f that frees itself after its last user.
func attach(f *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close() //nolint:errcheck // nothing was written
	for range loopTries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, os.NewSyscallError("LOOP_CTL_GET_FREE", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{
			Fd: uint32(f.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR},
		})
		if err == nil {
			return dev, nil
		}
		if closeErr := dev.Close(); closeErr != nil || !errors.Is(err, unix.EBUSY) {
			return nil, errors.Join(os.NewSyscallError("LOOP_CONFIGURE", err), closeErr)
		}
	}
	return nil, errors.New("no free loop device")
}
