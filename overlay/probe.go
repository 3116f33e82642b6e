package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Probe tries on this host, with this tree as lower and state's filesystem as
// upper, everything that the driver needs or likes to have. It mounts below
// state only, and leaves nothing behind.
func Probe(tree, state string) []snapshot.Check {
	p := prober{tree: tree, plain: tree != state && isPlain(tree, state), has: allFeatures()}
	if err := os.MkdirAll(state, 0o700); err != nil {
		return []snapshot.Check{{Name: "state directory", Needed: true, Detail: err.Error()}}
	}
	dir, err := os.MkdirTemp(state, "probe-")
	if err != nil {
		return []snapshot.Check{{Name: "state directory", Needed: true, Detail: err.Error()}}
	}
	p.dir = dir
	p.run()
	if err := os.RemoveAll(dir); err != nil {
		p.note("clean up", false, false, err.Error())
	}
	return p.checks
}

type prober struct {
	tree, dir string
	plain     bool // the layout that the tree has, or would have
	has       features
	checks    []snapshot.Check
}

func (p *prober) note(name string, ok, needed bool, detail string) {
	p.checks = append(p.checks, snapshot.Check{Name: name, OK: ok, Needed: needed, Detail: detail})
}

// try notes the outcome of a needed step, and tells whether to go on.
func (p *prober) try(name string, err error) bool {
	detail := ""
	if err != nil {
		detail = err.Error()
	}
	p.note(name, err == nil, true, detail)
	return err == nil
}

func (p *prober) run() {
	for _, d := range []string{"l", "l/d", "u", "w", "at"} {
		if !p.try("make directories", os.Mkdir(filepath.Join(p.dir, d), 0o700)) {
			return
		}
		p.checks = p.checks[:len(p.checks)-1] // only a failure is worth a line
	}
	if !p.try("prepare a lower", os.WriteFile(filepath.Join(p.dir, "l/f"), []byte("base"), 0o600)) {
		return
	}
	p.checks = p.checks[:0]
	m, err := p.mount(p.tree)
	if !p.try("overlay of this tree", err) {
		return
	}
	m.Close() //nolint:errcheck // a mount handle
	err = p.links()
	p.note(togetherCheck, err == nil, false,
		orElse(text(err), "", "a file of several names becomes one for each name that is changed: "))
	m, err = p.mount(filepath.Join(p.dir, "l"))
	if !p.try("overlay on the state's filesystem", err) {
		return
	}
	defer m.Close() //nolint:errcheck // a mount handle
	p.note("layers by descriptor (Linux 6.13)", p.has.lowerFD, false, "")
	p.note("any number of layers (lowerdir+, Linux 6.5)", p.has.lowerdir, false, "")
	p.use(m)
}

func (p *prober) mount(lower string) (*os.File, error) {
	return p.mountAs(spec{lowers: []string{lower}})
}

func (p *prober) mountAs(s spec) (*os.File, error) {
	for _, d := range []string{"u", "w"} { // a fresh upper each time
		if err := os.RemoveAll(filepath.Join(p.dir, d)); err != nil {
			return nil, err
		}
		if err := os.Mkdir(filepath.Join(p.dir, d), 0o700); err != nil {
			return nil, err
		}
	}
	s.source, s.upper, s.work = "deployx-probe", filepath.Join(p.dir, "u"), filepath.Join(p.dir, "w")
	return p.has.newOverlay(s, filepath.Join(p.dir, "stage"))
}

const togetherCheck = "keep hard links together (index)"

// links changes a file by one of its names and looks at another. A filesystem without
// file handles, the tree's or the state's, has the kernel mount without an index and
// say so in its log only (ovl_lower_dir, ovl_make_workdir).
func (p *prober) links() error {
	if p.plain {
		return errors.New("the plain layout is without an index")
	}
	lower := filepath.Join(p.dir, "l")
	if err := os.Link(filepath.Join(lower, "f"), filepath.Join(lower, "g")); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(lower, "g")) //nolint:errcheck // all of it goes
	lowers := []string{lower}
	if !within(p.dir, p.tree) { // overlapping layers
		lowers = append(lowers, p.tree)
	}
	m, err := p.mountAs(spec{lowers: lowers, index: true})
	if err != nil {
		return err
	}
	defer m.Close() //nolint:errcheck // a mount handle
	var st unix.Stat_t
	if err := unix.Fchmodat(int(m.Fd()), "f", 0o640, 0); err != nil {
		return err
	}
	if err := unix.Fstatat(int(m.Fd()), "g", &st, 0); err != nil {
		return err
	}
	if st.Mode&0o777 != 0o640 {
		return errors.New("the kernel mounted without an index (dmesg tells why)")
	}
	return nil
}

// use works in the detached mount, then swaps it.
func (p *prober) use(m *os.File) {
	at := int(m.Fd())
	if !p.try("rename a directory (redirect_dir)", unix.Renameat(at, "d", at, "e")) {
		return
	}
	err := unix.Fchmodat(at, "f", 0o640, 0)
	if err == nil {
		err = p.wasMetacopy()
	}
	raiseRedirectMax()
	p.note(fmt.Sprintf("rename below paths of up to %d bytes (redirect_max)", redirectMax), redirectLimit() >= redirectMax, false,
		orElse(fmt.Sprint(redirectLimit()), "", "the limit is "))
	p.note("change a mode without copying data (metacopy)", err == nil, false, text(err))
	p.swap(m)
}

func (p *prober) wasMetacopy() error {
	f, err := openAt(unix.AT_FDCWD, filepath.Join(p.dir, "u/f"), unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // O_PATH
	v, err := xattr(f, private+"metacopy")
	if err == nil && v == nil {
		err = errors.New("the file was copied")
	}
	return err
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// swap tries the atomic change of mounts and the proof after it.
func (p *prober) swap(m *os.File) {
	at := filepath.Join(p.dir, "at")
	if !p.try("mount over a directory", attach(m, at, 0)) {
		return
	}
	defer func() {
		for !sameMount(at, p.dir) {
			if err := unmountTop(at); err != nil {
				p.note("unmount", false, false, err.Error())
				return
			}
		}
	}()
	second, err := openTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE)
	if !p.try("clone a mount", err) {
		return
	}
	defer second.Close() //nolint:errcheck // a mount handle
	p.noteGap(at, second)
	p.noteLoad(m)
	w := &watch{content: -1, names: -1}
	err = w.open(at, p.dir)
	w.close()
	p.note("tell what services write during a command (fanotify)", err == nil, false,
		orElse(text(err), "", "in a held tree it counts as the command's: "))
	err = eachNamespace(func(namespace) error { return errEnough })
	p.note("list copies of the mount (Linux 6.12)", err == nil, false,
		orElse(text(err), "", "every process is looked at instead: "))
	p.try("prove that nobody writes (read-only superblock)", freeze(m))
}

// noteGap swaps the old way where the kernel has no other, and tells how long that
// showed what lies below.
func (p *prober) noteGap(at string, second *os.File) {
	err := unix.EINVAL
	if p.has.beneath {
		if e := attach(second, at, moveMountBeneath); e == nil || !errors.As(e, &err) {
			p.note(gapless, e == nil, false, text(e))
			return
		}
	}
	start := time.Now()
	e := unmountTop(at)
	if e == nil {
		e = attach(second, at, 0)
	}
	p.note(gapless, false, false, fmt.Sprintf("a swap shows base for a moment, here for %d µs (%v)", time.Since(start).Microseconds(), errors.Join(err, e)))
}

const gapless = "swap without a gap (MOVE_MOUNT_BENEATH, Linux 6.5)"

// noteLoad puts a mount on one that is attached nowhere.
func (p *prober) noteLoad(m *os.File) {
	err := p.load(m)
	p.note("mounts below the tree are put on a view before anybody sees it (Linux 6.15)", err == nil, false,
		orElse(text(err), "", "the view is attached to a directory of deployx for a moment: "))
}

func (p *prober) load(m *os.File) error {
	if !p.has.loadAny {
		return unix.EINVAL
	}
	view, err := openTree(int(m.Fd()), ".", unix.OPEN_TREE_CLONE)
	if err != nil {
		return err
	}
	defer view.Close() //nolint:errcheck // a mount handle
	s := submounts{list: []*submount{{Info: &mountinfo.Info{}, rel: "e", dir: true}}}
	defer s.close()
	if s.list[0].clone, err = openTree(unix.AT_FDCWD, p.dir, unix.OPEN_TREE_CLONE); err != nil {
		return err
	}
	_, err = s.attach(view)
	return err
}

func orElse(detail, none, prefix string) string {
	if detail == "" {
		return none
	}
	return fmt.Sprint(prefix, detail)
}
