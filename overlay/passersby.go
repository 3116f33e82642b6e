package overlay

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/procstat"
	"deployx/snapshot"
)

// A hold is looked at again to tell those who stay from passers-by: someone who
// lists a directory or appends a line has gone, or opened another file, in one
// of some looks; a service that keeps a descriptor is there in all. A look
// counts only if its process sleeps: one that runs, or waits for a processor or
// a disk, is in the middle of something. When it has run for holdRan since, or after
// holdPatience if it gets no turn, the doubt goes against the swap.
const (
	holdLooks    = 10
	holdPause    = 200 * time.Microsecond
	holdRan      = 100 * time.Millisecond
	holdPatience = 2 * time.Second
)

// staying looks again at holds until each has gone or moved, and names those
// that did neither.
func staying(holds []hold) []snapshot.Holder { return named(stayingHolds(holds)) }

func named(holds []hold) []snapshot.Holder {
	var h []snapshot.Holder
	for _, x := range holds {
		h = append(h, x.Holder)
	}
	return h
}

func stayingHolds(holds []hold) []hold {
	for i := range holds {
		holds[i].seize()
	}
	defer func() {
		for _, h := range holds {
			h.release()
		}
	}()
	var stay []hold
	left := slices.Clone(holds)
	end := time.Now().Add(holdPatience)
	for len(left) > 0 {
		time.Sleep(holdPause)
		var rest []hold
		for _, h := range left {
			switch {
			case !h.still():
			case h.seen >= holdLooks || h.ran() >= holdRan || time.Now().After(end):
				stay = append(stay, h)
			default:
				rest = append(rest, h)
			}
		}
		left = rest
	}
	return stay
}

// ran is how long the process has had a processor since seize.
func (h *hold) ran() time.Duration { return ranFor(h.PID) - h.had }

// ranFor is how long a process has run, all its threads together, in steps of 10 ms
// (utime and stime in proc_pid_stat(5); USER_HZ is 100 everywhere).
func ranFor(pid int) time.Duration {
	f := procstat.Fields("/proc/" + strconv.Itoa(pid) + "/stat")
	if f == nil {
		return 0
	}
	var ticks time.Duration
	for _, x := range f[procstat.UTime : procstat.STime+1] {
		n, err := strconv.ParseUint(x, 10, 62)
		if err != nil {
			return 0
		}
		ticks += time.Duration(n)
	}
	return ticks * 10 * time.Millisecond
}

// seize takes a duplicate of a descriptor, so that still can tell it from
// another one of the same number (pidfd_getfd(2), Linux 5.6). Where that is not
// to be had, the file, its flags and the position in it must do.
func (h *hold) seize() {
	h.had = ranFor(h.PID)
	dir, n := filepath.Split(h.link)
	num, err := strconv.Atoi(n)
	if err != nil || filepath.Base(dir) != "fd" {
		return
	}
	pidfd, err := unix.PidfdOpen(h.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(pidfd) //nolint:errcheck // nothing was written
	if fd, err := unix.PidfdGetfd(pidfd, num, 0); err == nil {
		h.twin, h.num = os.NewFile(uintptr(fd), h.link), num
	}
}

func (h *hold) release() {
	if h.twin != nil {
		h.twin.Close() //nolint:errcheck // it is not ours
	}
}

// still looks once more; the look counts if the process sleeps.
func (h *hold) still() bool {
	sleeps, ok := asleep(h.PID)
	if !ok {
		return false
	}
	if sleeps {
		h.seen++
	}
	if h.link == "" {
		return true
	}
	if h.twin != nil {
		same, known := sameDescription(h.twin, h.PID, h.num)
		if known {
			return same
		}
	}
	st, err := statLink(h.link)
	if err != nil || st.Mnt_id != h.stat.Mnt_id || st.Ino != h.stat.Ino {
		return false
	}
	return h.info == fdInfo(h.link)
}

// sameDescription compares open file descriptions (kcmp(2), KCMP_FILE).
func sameDescription(twin *os.File, pid, num int) (same, known bool) {
	const kcmpFile = 0
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(os.Getpid()), uintptr(pid), kcmpFile, twin.Fd(), uintptr(num), 0)
	switch errno {
	case 0:
		return r == 0, true
	case unix.EBADF, unix.ESRCH: // closed, or the process ended
		return false, true
	}
	return false, false
}

// asleep tells whether every thread of a process sleeps (proc_pid_stat(5)).
func asleep(pid int) (sleeps, ok bool) {
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/task/*")
	if err != nil || len(tasks) == 0 {
		return false, false
	}
	for _, t := range tasks {
		if f := procstat.Fields(t + "/stat"); f != nil && (f[procstat.State] == "R" || f[procstat.State] == "D") {
			return false, true
		}
	}
	return true, true
}
