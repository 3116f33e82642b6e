package session

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"deployx/internal/procstat"
	"deployx/snapshot"
)

// stopGrace is the time between SIGTERM and SIGKILL for the processes that a
// policy of stop ends.
const stopGrace = 5 * time.Second

// pinned names the tree's holders after the policy has been applied: none are
// left under stop, and refuse makes them an error.
func (s *Session) pinned(ctx context.Context) ([]snapshot.Holder, error) {
	h, err := s.holders(ctx)
	if err != nil || len(h) == 0 {
		return nil, err
	}
	if s.o.OnPinned == Share || s.o.OnPinned == Seal {
		return h, nil
	}
	if s.o.OnPinned == Refuse {
		return nil, busy(s.o.Tree.Path, h)
	}
	return nil, s.stopHolders(ctx, h)
}

func busy(tree string, h []snapshot.Holder) error {
	return &snapshot.Error{
		Code: snapshot.CodeTreeBusy, Msg: fmt.Sprintf("%q is held by running processes", tree), Holders: h,
		Hint: "stop them, move them out of the tree (cd /), or let deployx stop them with --on-pinned stop",
	}
}

// stopHolders ends the holders: SIGTERM, and SIGKILL after stopGrace. Our own
// ancestors are never stopped: that would be the terminal we were called from.
func (s *Session) stopHolders(ctx context.Context, h []snapshot.Holder) error {
	own := ancestors()
	for _, p := range h {
		if p.PID == 0 || own[p.PID] {
			return busy(s.o.Tree.Path, h)
		}
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		for _, p := range h {
			_ = unix.Kill(p.PID, sig) // it may have ended by itself
		}
		for end := time.Now().Add(stopGrace); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			left, err := s.drv.Holders(ctx)
			if err != nil || len(left) == 0 {
				return err
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			h = left
		}
	}
	return busy(s.o.Tree.Path, h)
}

// ancestors are this process and those that it was started from.
func ancestors() map[int]bool {
	own := map[int]bool{}
	for pid := os.Getpid(); pid > 1; pid = parent(pid) {
		own[pid] = true
	}
	return own
}

func parent(pid int) int {
	f := procstat.Fields("/proc/" + strconv.Itoa(pid) + "/stat")
	if f == nil {
		return 0
	}
	n, err := strconv.Atoi(f[procstat.Parent])
	if err != nil {
		return 0
	}
	return n
}

// holdersAnywhere names the tree's holders, or if there are none those who hold it by
// another mount.
func (s *Session) holdersAnywhere(ctx context.Context) ([]snapshot.Holder, error) {
	held, err := s.drv.Holders(ctx)
	if e, ok := s.drv.(snapshot.Elsewhere); ok && err == nil && len(held) == 0 {
		held, err = e.Elsewhere(ctx)
	}
	return held, err
}

// holders names the tree's holders; under the policy seal, where it matters
// whether there are any, those that are known will do.
func (s *Session) holders(ctx context.Context) ([]snapshot.Holder, error) {
	if r, ok := s.drv.(snapshot.Rememberer); ok && s.o.OnPinned == Seal {
		return r.Held(ctx)
	}
	return s.drv.Holders(ctx)
}
