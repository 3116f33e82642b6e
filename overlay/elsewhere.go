package overlay

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/mounts"
	"deployx/snapshot"
)

// A mount of the tree's superblock can be elsewhere too: a bind mount, or in
// another mount namespace (a container, a service with a private one). The expiry
// probe knows nothing of those. One that a swap does not reach would go on with
// the old view, which is then frozen: it is a hold, whoever uses it. One that gets
// our mounts by propagation (mount_namespaces(7)) is swapped along, and only who
// holds that is a hold.

// elsewhereLooks is how often one is looked at again: who makes a namespace has
// copies of all mounts for a moment.
const (
	elsewhereLooks = 5
	elsewherePause = 5 * time.Millisecond
)

// Elsewhere names those who hold the shown tree by another mount than the one on
// the tree's path. It reads the mounts of each namespace once.
func (d *Driver) Elsewhere(ctx context.Context) ([]snapshot.Holder, error) {
	open, err := d.Shown(ctx)
	if err != nil || open == "" {
		return nil, err
	}
	h, _, err := d.elsewhere(ctx)
	return h, err
}

func (d *Driver) refuseElsewhere(ctx context.Context) error {
	h, copies, err := d.elsewhere(ctx)
	for _, id := range copies { // who has a file by one of them is known by it when the swap has taken it away
		d.noteView(id)
	}
	if err != nil || len(h) == 0 {
		return err
	}
	e := d.heldBy(h, nil)
	e.Hint = "end these processes, or unmount what is mounted there (umount PATH)"
	return e
}

// elsewhere finds who holds the tree by another mount, and copies of its mount by which
// they may, by their unique ids.
func (d *Driver) elsewhere(ctx context.Context) (h []snapshot.Holder, copies []uint64, err error) {
	if d.onlyHere() {
		return nil, nil, nil
	}
	for look := 1; ; look++ {
		fixed, holds, copies, err := d.otherMounts()
		if err != nil {
			return nil, nil, err
		}
		if len(fixed) == 0 {
			return staying(holds), copies, nil
		}
		if look == elsewhereLooks || ctx.Err() != nil {
			return append(fixed, staying(holds)...), copies, nil
		}
		time.Sleep(elsewherePause)
	}
}

// otherMounts finds mounts that a swap does not reach, those that it does, by their
// unique ids (Linux 6.8), and holds by these.
func (d *Driver) otherMounts() (fixed []snapshot.Holder, holds []hold, copies []uint64, err error) {
	own, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read mountinfo: %w", err)
	}
	top, err := mounts.ID(d.tree)
	if err != nil {
		return nil, nil, nil, err
	}
	at := find(own, top)
	if at == nil {
		return nil, nil, nil, nil // it went away: nothing to hold
	}
	for _, m := range own {
		if sameDevice(m, at) && m.ID != at.ID {
			fixed = append(fixed, snapshot.Holder{Name: "mount", How: "a bind mount of the tree", Path: m.Mountpoint})
		}
	}
	spaces, err := namespaces()
	if err != nil {
		return nil, nil, nil, err
	}
	group := peerGroup(find(own, at.Parent))
	s := scanner{dev: unix.Mkdev(uint32(at.Major), uint32(at.Minor)), tree: d.tree, sub: &submounts{ids: map[uint64]bool{}}, mapsDev: d.has.mapsDev}
	for _, pids := range spaces {
		theirs, err := mountsOf(pids[0])
		if err != nil {
			continue // it has ended
		}
		reached := false
		for _, m := range theirs {
			switch {
			case !sameDevice(m, at):
			case m.Mountpoint == d.tree && follows(find(theirs, m.Parent), group):
				reached = true
				for _, b := range mounts.On(theirs, m.ID, d.tree) {
					s.sub.ids[uint64(b.ID)] = true
				}
			default:
				fixed = append(fixed, snapshot.Holder{PID: pids[0], Name: comm(pids[0]), How: "a mount of the tree in a namespace of its own", Path: m.Mountpoint})
			}
		}
		if !reached {
			continue
		}
		if id, dev, err := mounts.UniqueID("/proc/" + strconv.Itoa(pids[0]) + "/root" + d.tree); err == nil && dev == s.dev {
			copies = append(copies, id)
		}
		for _, pid := range pids {
			s.process(pid)
		}
	}
	return fixed, s.hard, copies, nil
}

func mountsOf(pid int) (mounts []*mountinfo.Info, err error) {
	f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read only
	return mountinfo.GetMountsFromReader(f, nil)
}

func find(mounts []*mountinfo.Info, id int) *mountinfo.Info {
	for _, m := range mounts {
		if m.ID == id {
			return m
		}
	}
	return nil
}

func sameDevice(a, b *mountinfo.Info) bool { return a.Major == b.Major && a.Minor == b.Minor }

// peerGroup is the group through which a mount passes on what is mounted on it;
// "" if it is private.
func peerGroup(m *mountinfo.Info) string {
	if m == nil {
		return ""
	}
	for f := range strings.FieldsSeq(m.Optional) {
		if g, ok := strings.CutPrefix(f, "shared:"); ok {
			return g
		}
	}
	return ""
}

// follows tells whether a mount gets what is mounted on the group's.
func follows(m *mountinfo.Info, group string) bool {
	if m == nil || group == "" {
		return false
	}
	for f := range strings.FieldsSeq(m.Optional) {
		if f == "shared:"+group || f == "master:"+group || f == "propagate_from:"+group {
			return true
		}
	}
	return false
}

// namespaces groups the processes that are not in our mount namespace by theirs.
func namespaces() (map[string][]int, error) {
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	pids, err := processes()
	if err != nil {
		return nil, err
	}
	spaces := map[string][]int{}
	for _, pid := range pids {
		ns, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/mnt")
		if err == nil && ns != own {
			spaces[ns] = append(spaces[ns], pid)
		}
	}
	return spaces, nil
}
