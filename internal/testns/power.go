package testns

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// CutPower shuts the ext4 or xfs that is mounted on dir down, as a power cut
// would: its journal is not flushed, and everything fails from then on
// (EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN). It panics if it cannot, for it is called
// at places that cannot fail.
func CutPower(dir string) {
	const goingDown, noLogFlush = 0x8004587d, 2
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, goingDown, noLogFlush)
		unix.Close(fd) //nolint:errcheck // only read
	}
	if err != nil {
		panic(fmt.Sprint("shutdown: ", err))
	}
}
