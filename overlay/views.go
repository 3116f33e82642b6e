package overlay

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// The file "views" lists the mounts that have shown the tree since the host was
// booted, by the ids that the kernel never uses twice (STATX_MNT_ID_UNIQUE,
// Linux 6.8): a process that has had a file of the tree open for long holds such
// a mount, which nothing else tells any more; so do services with a mount namespace of
// their own, by a copy of it. It is derived and not synced: what
// is missing costs a name in a report.
const (
	viewsMost = 64 << 10 // bytes, then the older half goes
	bootID    = "/proc/sys/kernel/random/boot_id"
)

// noteView adds the mount that shows the tree now.
func (d *Driver) noteView(id uint64) {
	if d.views == nil {
		d.views = d.openViews()
	}
	if d.views != nil {
		fmt.Fprintln(d.views, id) //nolint:errcheck // see above
	}
}

func (d *Driver) openViews() *os.File {
	name := filepath.Join(d.layers, "views")
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return nil
	}
	old, err := os.ReadFile(name)
	if err != nil || !bytes.HasPrefix(old, boot) {
		old = boot
	}
	if len(old) > viewsMost {
		half := old[len(old)-viewsMost/2:]
		old = append(bytes.Clone(boot), half[bytes.IndexByte(half, '\n')+1:]...)
	}
	if durable.Replace(name, old) != nil {
		return nil
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil
	}
	return f
}

// Views are the mounts that have shown the tree since the host was booted, as
// far as that is known, by their unique ids.
func (d *Driver) Views() map[uint64]bool {
	boot, err := os.ReadFile(bootID)
	if err != nil {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(d.layers, "views"))
	if err != nil || !bytes.HasPrefix(b, boot) {
		return nil
	}
	ids := map[uint64]bool{}
	for s := bufio.NewScanner(bytes.NewReader(b[len(boot):])); s.Scan(); {
		if id, err := strconv.ParseUint(strings.TrimSpace(s.Text()), 10, 64); err == nil {
			ids[id] = true
		}
	}
	return ids
}

var _ snapshot.Stander = (*Driver)(nil)

// StandsOn is what the mount was made of. See snapshot.Stander.
func (d *Driver) StandsOn(open snapshot.LayerID) (layers []snapshot.LayerID, err error) {
	units, err := d.standsOn(open)
	for _, u := range slices.Backward(units) {
		layers = append(layers, u.of...)
	}
	return layers, err
}
