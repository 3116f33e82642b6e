package faults

import "golang.org/x/sys/unix"

// withOld adds the calls that only older architectures have.
func withOld(m Calls) Calls {
	m[unix.SYS_MKDIR] = onPath("mkdir", -1, 0)
	m[unix.SYS_MKNOD] = onPath("mknod", -1, 0)
	m[unix.SYS_RENAME] = onPath("rename", -1, 1)
	m[unix.SYS_LINK] = onPath("link", -1, 1)
	m[unix.SYS_SYMLINK] = onPath("symlink", -1, 1)
	m[unix.SYS_UNLINK] = onPath("unlink", -1, 0)
	m[unix.SYS_RMDIR] = onPath("rmdir", -1, 0)
	m[unix.SYS_CHMOD] = onPath("chmod", -1, 0)
	m[unix.SYS_CHOWN] = onPath("chown", -1, 0)
	m[unix.SYS_LCHOWN] = onPath("lchown", -1, 0)
	return m
}

const sysFstatat = unix.SYS_NEWFSTATAT
