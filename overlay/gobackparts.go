package overlay

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// reserve takes the room that the data of from needs in to, as far as the filesystem
// can do that beforehand. Where blocks are shared (xfs) new ones are needed, too.
func reserve(from, to *os.File, size int64) error {
	err := parts(from, 0, size, func(at, end int64, hole bool) error {
		if hole {
			return nil
		}
		err := unix.Fallocate(int(to.Fd()), unix.FALLOC_FL_KEEP_SIZE|unix.FALLOC_FL_UNSHARE_RANGE, at, end-at)
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = unix.Fallocate(int(to.Fd()), unix.FALLOC_FL_KEEP_SIZE, at, end-at)
		}
		return err
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// giveBack gives back what was reserved behind a file's end.
func giveBack(to *os.File, was *unix.Stat_t) error {
	if err := to.Truncate(was.Size); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fdName(to), []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: was.Mtim.Sec, Nsec: was.Mtim.Nsec}}, 0)
}

// appendParts appends to to (O_APPEND) what from has from a place on.
func appendParts(from, to *os.File, at, size int64) error {
	return parts(from, at, size, func(at, end int64, hole bool) error {
		if hole {
			return appendHole(to, end-at)
		}
		_, err := io.Copy(to, io.NewSectionReader(from, at, end-at))
		return err
	})
}

// appendHole appends zeros, and gives up their blocks where they came to lie: a
// truncate to more could be one to less, for others append meanwhile.
func appendHole(to *os.File, size int64) error {
	zeros, there := make([]byte, min(size, 1<<20)), make([]byte, min(size, 1<<20))
	for size > 0 {
		n, err := to.Write(zeros[:min(size, int64(len(zeros)))])
		if err != nil {
			return err
		}
		end, err := to.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		at := end - int64(n)
		if _, err := to.ReadAt(there[:n], at); err == nil && bytes.Equal(there[:n], zeros[:n]) {
			unix.Fallocate(int(to.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, int64(n)) //nolint:errcheck // it is zeros either way
		}
		size -= int64(n)
	}
	return nil
}
