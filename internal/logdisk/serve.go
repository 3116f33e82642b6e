package logdisk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// envServe names the directory that the server mounts itself on.
const envServe = "DEPLOYX_TEST_LOGDISK"

// Main is called first in TestMain: in the process that New starts it serves and
// does not return. That is a process of its own, for one that waits for its own
// FUSE in fork(2) stops (github.com/hanwen/go-fuse issue 261).
func Main() {
	dir := os.Getenv(envServe)
	if dir == "" {
		return
	}
	if err := serve(dir); err != nil {
		fmt.Fprintln(os.Stderr, "logdisk:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(dir string) error {
	f := &file{log: newLog()}
	srv, err := fs.Mount(dir, &root{file: f}, &fs.Options{MountOptions: fuse.MountOptions{
		FsName: "logdisk", Name: "logdisk", DirectMountStrict: true, DisableSplice: true,
		DisableXAttrs: true, MaxWrite: 1 << 20,
	}})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	err = f.obey()
	for range 100 { // the loop device may let go a moment after its mount
		if e := srv.Unmount(); e == nil {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.Join(err, fmt.Errorf("%s is busy", dir))
}

// obey does what Disk asks for, until it asks no more.
func (f *file) obey() error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		var n int
		var seed uint64
		var to string
		switch line := lines.Text(); {
		case line == "requests":
			fmt.Printf("%s\n", f.log.kinds())
		case line == "count":
			fmt.Println(len(f.log.kinds()))
		case line == "fail":
			f.failed.Store(true)
			fmt.Println("done")
		default:
			if _, err := fmt.Sscanf(line, "cut %d %d %s", &n, &seed, &to); err != nil {
				return fmt.Errorf("%q: %w", line, err)
			}
			if err := f.log.cut(n, seed).save(to); err != nil {
				return err
			}
			fmt.Println("done")
		}
	}
	return nil
}

type root struct {
	fs.Inode
	file *file
}

func (r *root) OnAdd(ctx context.Context) {
	r.AddChild("disk", r.NewPersistentInode(ctx, r.file, fs.StableAttr{Mode: unix.S_IFREG}), false)
}

// file is the disk.
type file struct {
	fs.Inode
	log    *log
	failed atomic.Bool // what would change it fails

	mu   sync.Mutex
	size uint64
}

// change takes a request that changes the disk.
func (f *file) change(r request) syscall.Errno {
	if f.failed.Load() {
		return unix.EIO
	}
	f.log.serve(r)
	return 0
}

// Open keeps the kernel from caching: what is written arrives, in this order.
func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	out.Mode, out.Size, out.Nlink = 0o600, f.size, 1
	return 0
}

func (f *file) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		f.mu.Lock()
		f.size = size
		f.mu.Unlock()
	}
	return f.Getattr(ctx, h, out)
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, p []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.mu.Lock()
	p = p[:max(0, min(int64(len(p)), int64(f.size)-off))]
	f.mu.Unlock()
	f.log.read(p, off)
	return fuse.ReadResultData(p), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	return uint32(len(p)), f.change(request{kind: write, off: off, data: slices.Clone(p)})
}

func (f *file) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) != 0 { // else mkfs makes sure of the space
		return f.change(request{kind: zero, off: int64(off), len: int64(size)})
	}
	return 0
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	return f.change(request{kind: flush})
}
