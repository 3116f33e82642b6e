package session

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// CheckTree says whether a directory can be a tree, whatever the driver, and
// returns its path free of symbolic links.
func CheckTree(path, state string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", refuse("%q does not exist", path)("make the directory first")
	}
	if err != nil {
		return "", err
	}
	fi, err := os.Lstat(real)
	if err != nil {
		return "", err
	}
	if r, err := filepath.EvalSymlinks(state); err == nil {
		state = r
	}
	switch {
	case !fi.IsDir():
		return "", refuse("%q is not a directory", path)("name a directory")
	case real == "/":
		return "", refuse("the root directory cannot be a tree")("choose the directory that the commands work in, such as /srv/app")
	case inside(state, real):
		return "", refuse("%q holds the state directory %q", path, state)("choose another tree, or another --state outside it")
	case inside(real, state):
		return "", refuse("%q lies in the state directory %q", path, state)("choose another tree, or another --state")
	}
	if err := keepsFiles(real); err != nil {
		return "", err
	}
	if err := nested(real, state); err != nil {
		return "", err
	}
	return real, foreign(real)
}

// keepsFiles refuses what the kernel makes up: nothing that is written there is kept.
func keepsFiles(tree string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(tree, &fs); err != nil {
		return &os.PathError{Op: "statfs", Path: tree, Err: err}
	}
	switch int64(fs.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.SECURITYFS_MAGIC, unix.BPF_FS_MAGIC, unix.PSTOREFS_MAGIC, unix.EFIVARFS_MAGIC,
		unix.BINFMTFS_MAGIC, unix.NSFS_MAGIC:
		return refuse("%q holds no files: it is on a file system that the kernel makes up (statfs type %#x)", tree, fs.Type)("choose a directory with files, such as /srv/app")
	}
	return nil
}

func refuse(format string, args ...any) func(hint string, args ...any) error {
	return func(hint string, more ...any) error {
		return &snapshot.Error{Code: snapshot.CodeUnsupported, Msg: fmt.Sprintf(format, args...), Hint: fmt.Sprintf(hint, more...)}
	}
}

// inside holds if path is dir or lies below it.
func inside(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

func mountsIn(dir string) ([]*mountinfo.Info, error) {
	m, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !inside(m.Mountpoint, dir), false
	})
	if err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return m, nil
}

// nested refuses a tree within another one, or around it: a rollback of the outer
// one would take the inner one's record and layers along.
func nested(tree, state string) (refused error) {
	err := snapshot.NewState(state).Each(func(t snapshot.Tree, err error) {
		switch {
		case err != nil || t.Path == tree: // one that cannot be read is its own users' business
		case inside(tree, t.Path):
			refused = refuse("%q lies in %q, which is a tree already", tree, t.Path)("use that one (--tree %q), or give it up first (deployx commit, deployx forget)", t.Path)
		case inside(t.Path, tree):
			refused = refuse("%q holds %q, which is a tree already", tree, t.Path)("use that one, or give it up first (deployx commit and deployx forget --tree %q)", t.Path)
		}
	})
	return errors.Join(refused, err)
}

// foreign refuses a tree that a deployx shows which keeps its record elsewhere, or
// that lies in one or around one.
func foreign(tree string) error {
	shown, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !inside(tree, m.Mountpoint) && !inside(m.Mountpoint, tree) || !strings.HasPrefix(m.Source, "deployx:"), false
	})
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	if len(shown) == 0 {
		return nil
	}
	switch at := shown[0].Mountpoint; {
	case at == tree:
		return refuse("%q is shown by a deployx with another state directory", tree)("use that one (--state), or roll everything back there first")
	case inside(at, tree):
		return refuse("%q holds %q, which is the tree of a deployx with another state directory", tree, at)("roll everything back there first")
	default:
		return refuse("%q lies in %q, which is the tree of a deployx with another state directory", tree, at)("use that tree (--state), or roll everything back there first")
	}
}

// ChooseStore says where a tree's files are to be kept: below the state
// directory if that is on the tree's filesystem, else in .deployx at the root
// of the tree's mount, so that layers and base share a filesystem. Where that
// cannot be (a tree that is itself a mount, a root that cannot be written), it
// is the state directory after all.
func ChooseStore(tree, state string) string {
	name := snapshot.Name(tree)
	inState := filepath.Join(state, "trees", name)
	if sameDevice(tree, existing(state)) {
		return inState
	}
	root := tree
	for root != "/" && sameDevice(filepath.Dir(root), tree) {
		root = filepath.Dir(root)
	}
	store := filepath.Join(root, ".deployx", name)
	if root == tree || os.MkdirAll(store, 0o700) != nil {
		return inState
	}
	return store
}

// existing is path or its nearest parent that exists.
func existing(path string) string {
	for path != "/" {
		if _, err := os.Lstat(path); err == nil {
			break
		}
		path = filepath.Dir(path)
	}
	return path
}

func sameDevice(a, b string) bool {
	var s, t unix.Stat_t
	return unix.Lstat(a, &s) == nil && unix.Lstat(b, &t) == nil && s.Dev == t.Dev
}
