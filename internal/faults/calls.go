package faults

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A call is how one system call names what it is about.
type call struct {
	name string
	fd   int // the argument with a descriptor; dirfd of a path; -1: none
	path int // the argument with a path; -1: none
	// only, if not 0, are bits of argument arg without which it changes nothing.
	arg  int
	only uint32
}

func onFD(name string, fd int) call          { return call{name, fd, -1, 0, 0} }
func onPath(name string, dir, path int) call { return call{name, dir, path, 0, 0} }
func onMount(name string) call               { return call{name, -1, -1, 0, 0} }

// Calls are system calls, by number.
type Calls map[uintptr]call

// Changes are those that change a file system or the mount table.
var Changes = withOld(Calls{
	unix.SYS_WRITE:           onFD("write", 0),
	unix.SYS_PWRITE64:        onFD("pwrite64", 0),
	unix.SYS_FSYNC:           onFD("fsync", 0),
	unix.SYS_FDATASYNC:       onFD("fdatasync", 0),
	unix.SYS_SYNCFS:          onFD("syncfs", 0),
	unix.SYS_FTRUNCATE:       onFD("ftruncate", 0),
	unix.SYS_FALLOCATE:       onFD("fallocate", 0),
	unix.SYS_FCHMOD:          onFD("fchmod", 0),
	unix.SYS_FCHOWN:          onFD("fchown", 0),
	unix.SYS_FSETXATTR:       onFD("fsetxattr", 0),
	unix.SYS_COPY_FILE_RANGE: onFD("copy_file_range", 2),
	unix.SYS_SENDFILE:        onFD("sendfile", 0),

	unix.SYS_OPENAT:     {"openat", 0, 1, 2, unix.O_CREAT | unix.O_TRUNC},
	unix.SYS_MKDIRAT:    onPath("mkdirat", 0, 1),
	unix.SYS_MKNODAT:    onPath("mknodat", 0, 1),
	unix.SYS_RENAMEAT:   onPath("renameat", 2, 3),
	unix.SYS_RENAMEAT2:  onPath("renameat2", 2, 3),
	unix.SYS_LINKAT:     onPath("linkat", 2, 3),
	unix.SYS_SYMLINKAT:  onPath("symlinkat", 1, 2),
	unix.SYS_UNLINKAT:   onPath("unlinkat", 0, 1),
	unix.SYS_FCHMODAT:   onPath("fchmodat", 0, 1),
	unix.SYS_FCHOWNAT:   onPath("fchownat", 0, 1),
	unix.SYS_UTIMENSAT:  onPath("utimensat", 0, 1),
	unix.SYS_SETXATTR:   onPath("setxattr", -1, 0),
	unix.SYS_LSETXATTR:  onPath("lsetxattr", -1, 0),
	unix.SYS_TRUNCATE:   onPath("truncate", -1, 0),
	unix.SYS_MOUNT:      onPath("mount", -1, 1),
	unix.SYS_UMOUNT2:    onPath("umount2", -1, 0),
	unix.SYS_MOVE_MOUNT: onMount("move_mount"),
	unix.SYS_OPEN_TREE:  onMount("open_tree"),
	unix.SYS_FSOPEN:     onMount("fsopen"),
	unix.SYS_FSCONFIG:   onMount("fsconfig"),
	unix.SYS_FSMOUNT:    onMount("fsmount"),
	unix.SYS_FSPICK:     onMount("fspick"),
})

// Reads are those that look at a file system.
var Reads = Calls{
	unix.SYS_READ:       onFD("read", 0),
	unix.SYS_PREAD64:    onFD("pread64", 0),
	unix.SYS_GETDENTS64: onFD("getdents64", 0),
	unix.SYS_FSTAT:      onFD("fstat", 0),
	unix.SYS_FSTATFS:    onFD("fstatfs", 0),
	unix.SYS_FGETXATTR:  onFD("fgetxattr", 0),
	unix.SYS_FLISTXATTR: onFD("flistxattr", 0),
	unix.SYS_IOCTL:      onFD("ioctl", 0),

	unix.SYS_OPENAT:            onPath("openat", 0, 1),
	unix.SYS_OPENAT2:           onPath("openat2", 0, 1),
	sysFstatat:                 onPath("fstatat", 0, 1),
	unix.SYS_STATX:             onPath("statx", 0, 1),
	unix.SYS_READLINKAT:        onPath("readlinkat", 0, 1),
	unix.SYS_FACCESSAT:         onPath("faccessat", 0, 1),
	unix.SYS_FACCESSAT2:        onPath("faccessat2", 0, 1),
	unix.SYS_NAME_TO_HANDLE_AT: onPath("name_to_handle_at", 0, 1),
	unix.SYS_STATFS:            onPath("statfs", -1, 0),
	unix.SYS_GETXATTR:          onPath("getxattr", -1, 0),
	unix.SYS_LGETXATTR:         onPath("lgetxattr", -1, 0),
	unix.SYS_LISTXATTR:         onPath("listxattr", -1, 0),
	unix.SYS_LLISTXATTR:        onPath("llistxattr", -1, 0),
}

// target describes a call of ours below one of the directories; "" for others.
func (calls Calls) target(n notification, tgid int, dirs []string) string {
	c, ok := calls[uintptr(n.Nr)]
	if !ok {
		return ""
	}
	if _, err := os.Lstat(fmt.Sprintf("/proc/%d/task/%d", tgid, n.PID)); err != nil {
		return "" // what the process has started
	}
	name := c.names(n)
	if c.fd < 0 && c.path < 0 || strings.HasPrefix(name, "/proc/self/fd/") {
		return c.name + " " + name
	}
	for _, d := range dirs {
		if name == d || strings.HasPrefix(name, d+"/") {
			return c.name + " " + name
		}
	}
	return ""
}

func (c call) names(n notification) string {
	if c.path < 0 {
		return link(n, c.fd)
	}
	path := text(n.PID, n.Args[c.path])
	if filepath.IsAbs(path) || c.fd < 0 {
		return path
	}
	return filepath.Join(link(n, c.fd), path)
}

// link is what a descriptor of the thread stands for.
func link(n notification, arg int) string {
	if arg < 0 {
		return ""
	}
	to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", n.PID, int32(n.Args[arg])))
	if err != nil {
		return ""
	}
	return to
}

// text is a string in the memory of the thread.
func text(pid uint32, at uint64) string {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // read only
	buf := make([]byte, unix.PathMax)
	n, err := f.ReadAt(buf, int64(at))
	if err != nil && n == 0 {
		return ""
	}
	s, _, _ := strings.Cut(string(buf[:n]), "\x00")
	return s
}
