package session

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/crash"
	"deployx/overlay"
	"deployx/snapshot"
)

// counting is a driver that notes when changes are asked for.
type counting struct {
	*overlay.Driver
	ran          atomic.Bool // the command has
	early, after atomic.Int32
}

func (c *counting) Changes(ctx context.Context, below, layers []snapshot.LayerID, visit func(snapshot.Change) error) error {
	if c.ran.Load() {
		c.after.Add(1)
	} else {
		c.early.Add(1)
	}
	return c.Driver.Changes(ctx, below, layers, visit)
}

// TestCountBeside: what a command changed is counted once, while its shell's state is
// captured; where something of the command's goes on, after that.
func TestCountBeside(t *testing.T) {
	r := newRig(t)
	if err := r.Session.Close(); err != nil {
		t.Fatal(err)
	}
	var c *counting
	r.opts.OpenDriver = func(_ context.Context, t snapshot.Tree) (snapshot.Driver, error) {
		d, err := overlay.New(overlay.Options{Tree: t.Path, State: t.Store})
		c = &counting{Driver: d}
		return c, err
	}
	r.reopen()
	defer crash.SetHook(func(point string) {
		if point == "session.ran" {
			c.ran.Store(true)
		}
	})()
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		text         string
		early, after int32
	}{
		"nothing runs on": {"echo x >a; sh -c 'echo x >b'", 1, 0},
		"a job runs on":   {fmt.Sprintf("(cd /; echo >%[1]s; exec sleep 1000 >/dev/null 2>&1) & read -r _ <%[1]s; echo x >c; echo x >d", fifo), 0, 1},
		"the shell ends":  {"echo x >e; echo x >f; exit 0", 0, 1},
		"an interrupt":    {"echo x >g; echo x >h; kill -INT $$; sleep 1000", 1, 0},
	} {
		c.ran.Store(false)
		c.early.Store(0)
		c.after.Store(0)
		res, _ := r.run(x.text)
		if res.Snapshot.Changes != (snapshot.Counts{Added: 2}) {
			t.Errorf("%s: %+v", name, res.Snapshot.Changes)
		}
		if early, after := c.early.Load(), c.after.Load(); early != x.early || after != x.after {
			t.Errorf("%s: counted %d times while it ended and %d after", name, early, after)
		}
		for _, p := range res.Survivors {
			unix.Kill(p.PID, unix.SIGKILL) //nolint:errcheck // a job of ours
		}
	}
}
