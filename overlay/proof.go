package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// While a swap waits for the proof that nobody can write to the old view any more, that
// view is mounted in layers/proof, too: with who is killed meanwhile the last way to it
// would be gone, but for somebody who has a file of it open and would write to a sealed
// layer for as long as he lives. Who comes next ends what was begun.

func (d *Driver) proof() string { return filepath.Join(d.layers, "proof") }

// keepOld mounts the old view, which the tree still shows, there. Where that cannot be
// done the swap goes on without it.
func (d *Driver) keepOld() {
	at := d.proof()
	if mounts.IsRoot(at) { // it comes back, and this is the new one
		return
	}
	if err := os.Mkdir(at, 0o700); err == nil || errors.Is(err, os.ErrExist) {
		unix.Mount(d.tree, at, "", unix.MS_BIND, "") //nolint:errcheck // see above
	}
}

// dropOld takes it away. Nobody knows that mount: it is not busy, but for a moment.
func (d *Driver) dropOld() error {
	if !mounts.IsRoot(d.proof()) {
		return nil
	}
	return unmountSoon(d.proof(), stagePatience)
}

// prove freezes a view that one who was killed has left unproven. If somebody writes to
// it still it stays for the next to try, and he is named.
func (d *Driver) prove(shown snapshot.LayerID) {
	if !mounts.IsRoot(d.proof()) {
		return
	}
	of, err := topSource(d.proof())
	if err == nil && of != shown { // else it was not taken away, or came back
		err = d.freezeLeft(of)
	}
	if err == nil {
		err = d.dropOld()
	}
	if err != nil && !errors.Is(err, unix.EBUSY) {
		d.merging.say(fmt.Sprintf("a former view of %q is not proven to be over: %v", d.tree, err))
	}
}

func (d *Driver) freezeLeft(of snapshot.LayerID) error {
	m, err := openTree(unix.AT_FDCWD, d.proof(), 0)
	if err != nil {
		return err
	}
	defer m.Close() //nolint:errcheck // a mount handle
	if err = freeze(m); errors.Is(err, unix.EBUSY) {
		d.merging.say(fmt.Sprintf("a deployx was killed just after it had shown a view of %q, and a process still has a file open for writing that it opened"+
			" in the view before: what it writes is not in the tree, but in %s. End it: %s",
			d.tree, filepath.Join(d.dir(of, d.sealedSub()), d.name), strings.Join(writersOf(d.proof()), ", ")))
	}
	return err
}

// writersOf names the processes that have a file of a mount's superblock open for
// writing.
func writersOf(at string) (names []string) {
	root, err := statLink(at)
	if err != nil {
		return nil
	}
	pids, err := processes()
	if err != nil {
		return nil
	}
	for _, pid := range pids {
		for _, link := range descriptors(pid) {
			st, err := statLink(link)
			if err != nil || st.Dev_major != root.Dev_major || st.Dev_minor != root.Dev_minor || fdFlags(fdInfo(link))&unix.O_ACCMODE == unix.O_RDONLY {
				continue
			}
			path, _ := os.Readlink(link) //nolint:errcheck // then it is not told
			names = append(names, fmt.Sprintf("%s (%d, %s)", comm(pid), pid, strconv.Quote(path)))
		}
	}
	return names
}
