package session

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// lazyDriver tells how its trash is emptied.
type lazyDriver struct {
	snapshot.Driver
	nice  int
	began chan struct{}
	end   chan struct{}
}

func (d *lazyDriver) EmptyTrash(context.Context) error {
	n, err := unix.Getpriority(unix.PRIO_PROCESS, unix.Gettid())
	d.nice = 20 - n // getpriority(2), the raw call
	close(d.began)
	<-d.end
	return err
}

// TestTrashYields: trash is emptied at the lowest priority, by a thread that is
// not used again, and commands go on meanwhile.
func TestTrashYields(t *testing.T) {
	r := newRig(t)
	d := &lazyDriver{Driver: r.drv, began: make(chan struct{}), end: make(chan struct{})}
	other, err := Open(context.Background(), r.opts)
	if err != nil {
		t.Fatal(err)
	}
	other.drv = d
	done := make(chan error)
	go func() { done <- other.EmptyTrash(context.Background()) }()
	<-d.began
	r.run("echo meanwhile > meanwhile")
	close(d.end)
	if err := errors.Join(<-done, other.Close()); err != nil {
		t.Fatal(err)
	}
	if d.nice != 19 {
		t.Errorf("nice value %d", d.nice)
	}
	if _, err := os.Stat(filepath.Join(r.tree, "meanwhile")); err != nil {
		t.Error(err)
	}
}
