package snapshottest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A verb does one kind of operation below root.
type verb func(root string, op Op) error

// verbs are the operations by name. Each reports the kernel's error number, so
// that a refusal can be compared too.
func verbs() map[string]verb {
	return map[string]verb{
		"write":       writeFile(unix.O_CREAT | unix.O_TRUNC),
		"append":      writeFile(unix.O_CREAT | unix.O_APPEND),
		"grow":        writeFile(unix.O_APPEND),
		"replace":     replaceFile,
		"overwrite":   overwriteFile,
		"quiet":       overwriteQuietly,
		"mapped":      writeMapped,
		"punch":       punchHole,
		"open":        openFile,
		"truncate":    truncateFile,
		"mkdir":       makeDir,
		"unlink":      func(root string, op Op) error { return unix.Unlink(at(root, op.Path)) },
		"rmdir":       func(root string, op Op) error { return unix.Rmdir(at(root, op.Path)) },
		"rmtree":      func(root string, op Op) error { return os.RemoveAll(at(root, op.Path)) },
		"rename":      func(root string, op Op) error { return unix.Rename(at(root, op.Path), at(root, op.To)) },
		"exchange":    exchange,
		"link":        func(root string, op Op) error { return unix.Link(at(root, op.Path), at(root, op.To)) },
		"symlink":     func(root string, op Op) error { return unix.Symlink(op.To, at(root, op.Path)) },
		"mkfifo":      makeNode(unix.S_IFIFO),
		"mksock":      makeNode(unix.S_IFSOCK),
		"mkchar":      makeNode(unix.S_IFCHR),
		"mkblock":     makeNode(unix.S_IFBLK),
		"chmod":       setMode,
		"chown":       func(root string, op Op) error { return unix.Lchown(at(root, op.Path), int(op.N), int(op.M)) },
		"touch":       setTime,
		"setxattr":    setXattr,
		"removexattr": func(root string, op Op) error { return unix.Lremovexattr(at(root, op.Path), op.Name) },
		"chattr":      setFlags,
		"read":        readFile,
		"list":        readDir,
	}
}

// changesNothing tells the verbs that only look.
func changesNothing(op Op) bool { return op.Verb == "read" || op.Verb == "list" }

// at is path below root. The root itself is "root/.", which the kernel refuses
// to rename or remove.
func at(root, path string) string { return root + "/" + path }

// with opens path and hands its descriptor to do.
func with(path string, flags int, do func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	return errors.Join(do(fd), unix.Close(fd))
}

func writeFile(flags int) verb {
	return func(root string, op Op) error {
		return with(at(root, op.Path), flags|unix.O_WRONLY, func(fd int) error { return writeAt(fd, op.Data) })
	}
}

// writeAt writes all of data where the descriptor stands.
func writeAt(fd int, data string) error {
	for len(data) > 0 {
		n, err := unix.Write(fd, []byte(data))
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// replaceFile is how careful programs write: a new file renamed over the old.
func replaceFile(root string, op Op) error {
	tmp := op
	tmp.Path += ".new"
	if err := writeFile(unix.O_CREAT|unix.O_EXCL)(root, tmp); err != nil {
		return err
	}
	return unix.Rename(at(root, tmp.Path), at(root, op.Path))
}

func overwriteFile(root string, op Op) error {
	return with(at(root, op.Path), unix.O_WRONLY, func(fd int) error {
		_, err := unix.Pwrite(fd, []byte(op.Data), op.N)
		return err
	})
}

func overwriteQuietly(root string, op Op) error {
	return with(at(root, op.Path), unix.O_RDWR, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if _, err := unix.Pwrite(fd, []byte(op.Data), op.N); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, at(root, op.Path), []unix.Timespec{st.Atim, st.Mtim}, 0)
	})
}

// writeMapped does nothing to a file that is too short, as the kernel would
// answer with a signal.
func writeMapped(root string, op Op) error {
	return with(at(root, op.Path), unix.O_RDWR, func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Size < op.N+int64(len(op.Data)) {
			return err
		}
		m, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return err
		}
		copy(m[op.N:], op.Data)
		return errors.Join(unix.Msync(m, unix.MS_SYNC), unix.Munmap(m))
	})
}

func punchHole(root string, op Op) error {
	return with(at(root, op.Path), unix.O_WRONLY, func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.N, op.M)
	})
}

// openFile opens for writing and writes nothing.
func openFile(root string, op Op) error {
	return with(at(root, op.Path), unix.O_RDWR, func(int) error { return nil })
}

func truncateFile(root string, op Op) error {
	return with(at(root, op.Path), unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, op.N) })
}

// makeDir leaves the mode to the kernel when none is given: then umask, a
// setgid parent and default ACLs have their say.
func makeDir(root string, op Op) error {
	if err := unix.Mkdir(at(root, op.Path), 0o777); err != nil || op.N == 0 {
		return err
	}
	return unix.Chmod(at(root, op.Path), uint32(op.N))
}

// setMode does not follow a symbolic link, which may lead out of the tree.
func setMode(root string, op Op) error {
	var st unix.Stat_t
	if err := unix.Lstat(at(root, op.Path), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(at(root, op.Path), uint32(op.N))
}

func exchange(root string, op Op) error {
	return unix.Renameat2(unix.AT_FDCWD, at(root, op.Path), unix.AT_FDCWD, at(root, op.To), unix.RENAME_EXCHANGE)
}

func makeNode(kind uint32) verb {
	return func(root string, op Op) error {
		dev := 0
		if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
			dev = int(op.N)
		}
		return unix.Mknod(at(root, op.Path), kind|0o640, dev)
	}
}

func setTime(root string, op Op) error {
	ts := []unix.Timespec{{Sec: op.N, Nsec: op.M}, {Sec: op.N, Nsec: op.M}}
	return unix.UtimesNanoAt(unix.AT_FDCWD, at(root, op.Path), ts, unix.AT_SYMLINK_NOFOLLOW)
}

func setXattr(root string, op Op) error {
	return unix.Lsetxattr(at(root, op.Path), op.Name, []byte(op.Data), 0)
}

func setFlags(root string, op Op) error {
	return with(at(root, op.Path), unix.O_RDONLY, func(fd int) error {
		old, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
		if err != nil {
			return err
		}
		const all = flagImmutable | flagAppend | flagNodump | flagNoatime | flagSync
		return unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(old&^all|uint32(op.N)))
	})
}

// The inode flags that chattr(1) sets, linux/fs.h.
const (
	flagSync      = 0x8
	flagImmutable = 0x10
	flagAppend    = 0x20
	flagNodump    = 0x40
	flagNoatime   = 0x80
)

func readFile(root string, op Op) error {
	return with(at(root, op.Path), unix.O_RDONLY, func(fd int) error {
		_, err := unix.Read(fd, make([]byte, 1<<16))
		return err
	})
}

func readDir(root string, op Op) error {
	_, err := os.ReadDir(at(root, op.Path))
	return errno(err)
}

// errno is the kernel's error number in err, which alone can be compared
// between two trees; err itself where there is none.
func errno(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

func unknownVerb(op Op) error { return fmt.Errorf("unknown verb in %v", op) }
