package session

import (
	"context"
	"runtime"

	"golang.org/x/sys/unix"
)

// EmptyTrash gives the space of discarded layers back. It holds no lock, runs at
// the lowest priority of processor and disk, and may take its time; ctx ends it.
func (s *Session) EmptyTrash(ctx context.Context) error {
	e, ok := s.drv.(interface{ EmptyTrash(context.Context) error })
	if !ok {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its priority
		yieldToOthers()
		done <- e.EmptyTrash(ctx)
	}()
	return <-done
}

// yieldToOthers gives the calling thread the nice value 19 and the idle class of
// ioprio_set(2). A host that does not allow it has no need to be told.
func yieldToOthers() {
	const whoProcess, classIdle = 1, 3 << 13 // linux/ioprio.h
	tid := unix.Gettid()
	unix.Setpriority(unix.PRIO_PROCESS, tid, 19)                                    //nolint:errcheck // see above
	unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(tid), uintptr(classIdle)) //nolint:errcheck // see above
}
