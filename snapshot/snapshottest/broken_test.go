package snapshottest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
)

func TestMain(m *testing.M) { testns.Main(m) }

// naiveLimits: the naive driver takes the tree away and puts another there.
var naiveLimits = Options{Gap: true, quick: true}

func TestNaive(t *testing.T) { naiveLimits.Run(t, openNaive("")) }

func TestNaiveCrash(t *testing.T) { naiveLimits.Crash(t, openNaive("")) }

func TestNaiveDifferential(t *testing.T) {
	one := Subject{openNaive(""), naiveLimits}
	other := one
	other.Options.SplitsHardLinks = true // so that no links are made
	Differential(t, one, other)
}

// envBroken makes TestBroken run the suite over a broken driver.
const envBroken = "DEPLOYX_TEST_BROKEN"

// TestBroken fails on purpose, in a child of TestCatches.
func TestBroken(t *testing.T) {
	how := os.Getenv(envBroken)
	if how == "" {
		t.Skip("only as a child of TestCatches")
	}
	t.Run("suite", func(t *testing.T) { naiveLimits.Run(t, openNaive(how)) })
	t.Run("crash", func(t *testing.T) { naiveLimits.Crash(t, openNaive(how)) })
	t.Run("differential", func(t *testing.T) {
		Differential(t, Subject{openNaive(""), naiveLimits}, Subject{openNaive(how), naiveLimits})
	})
}

// TestCatches breaks the naive driver in many ways. For each it names a test of
// the suite that must fail.
func TestCatches(t *testing.T) {
	const named, contract, random = "suite/named/", "suite/contract/", "suite/random/seed=1"
	for how, where := range map[string]string{
		"never dirty":                named + "append",
		"always dirty":               contract + "clean_at_first",
		"root never dirty":           named + "the_root's_own_attributes",
		"dirty by size":              named + "overwrite_with_the_time_put_back",
		"wrong order":                named + "rename_chain",
		"changes a sealed layer":     contract + "open_layer_left_behind",
		"forgets the open layer":     contract + "open_layer_left_behind",
		"forgets deletions":          named + "remove_all",
		"does not hide":              contract + "hidden",
		"loses at push":              random,
		"shows again":                contract + "clean_at_first",
		"shows what never was":       contract + "unknown_layer",
		"keeps what is discarded":    contract + "discard",
		"tells no deletions":         contract + "changes",
		"tells metadata as modified": named + "modes",
		"opens nothing":              contract + "open",
		"opens through links":        contract + "open",
		"forgets xattrs":             named + "extended_attributes",
		"forgets mtimes":             named + "append",
		"forgets nanoseconds":        named + "append",
		"forgets link times":         named + "symbolic_links",
		"forgets modes":              named + "modes",
		"forgets owners":             named + "owners",
		"forgets the root":           named + "the_root's_own_attributes",
		"fills holes":                named + "sparse_files",
		"parts links":                named + "hard_link_removed",
		"forgets flags":              named + "flags",
		"does not see that it died":  "crash",
		"other changes":              "differential/seed=1",
	} {
		t.Run(how, func(t *testing.T) {
			cmd := exec.Command("/proc/self/exe", "-test.failfast", "-test.run="+pattern("TestBroken/"+where))
			cmd.Env = append(os.Environ(), envBroken+"="+how)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 1 || !bytes.Contains(out, []byte("--- FAIL: TestBroken")) {
				t.Errorf("%s did not fail: %v\n%s", where, err, out)
			}
			t.Logf("%.600s", out)
		})
	}
}

// damage does to the restored tree what a careless driver does. old is what
// the root was before.
func (n *naive) damage(old treecmp.Entry) error {
	pic, err := treecmp.Take(n.tree)
	if err != nil {
		return err
	}
	for path, e := range pic {
		if err := n.damageOne(path, e); err != nil {
			return fmt.Errorf("damage %q: %w", path, err)
		}
	}
	if n.broken == "forgets the root" {
		return dress(old, n.tree)
	}
	return nil
}

func (n *naive) damageOne(path string, e treecmp.Entry) error {
	full := filepath.Join(n.tree, path)
	touch := func(ns int64) error {
		ts := unix.NsecToTimespec(ns)
		return unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	}
	switch {
	case n.broken == "forgets xattrs":
		for name := range e.Xattrs {
			return unsetAttr(full, name)
		}
	case n.broken == "forgets mtimes" && e.Type == 'f':
		return touch(1)
	case n.broken == "forgets nanoseconds":
		return touch(e.Mtime / 1000 * 1000)
	case n.broken == "forgets link times" && e.Type == 'l':
		return touch(1)
	case n.broken == "forgets modes" && e.Type != 'l':
		return unix.Chmod(full, e.Mode&0o777)
	case n.broken == "forgets owners":
		return os.Lchown(full, 0, 0)
	case n.broken == "fills holes" && e.Holes > 64<<20:
		return with(full, unix.O_WRONLY, func(fd int) error { return unix.Fallocate(fd, 0, 0, 64<<20) })
	case n.broken == "forgets flags" && e.Flags != 0:
		return setFlags("/", Op{Path: full})
	case n.broken == "parts links" && e.Group != "":
		return recopy(filepath.Dir(full), filepath.Base(full))
	}
	return nil
}

func unsetAttr(path, name string) error { return unix.Lremovexattr(path, name) }

// overlayCopy copies from over to and removes nothing.
func overlayCopy(from, to string) (treecmp.Picture, error) {
	pic, err := treecmp.Take(from)
	if err != nil {
		return nil, err
	}
	for _, path := range pic.Paths() {
		if kind(filepath.Join(to, path)) != 0 {
			continue
		}
		e := pic[path]
		e.Group = ""
		if err := create(e, path, from, to); err != nil {
			return nil, err
		}
		if err := dress(pic[path], filepath.Join(to, path)); err != nil {
			return nil, err
		}
	}
	return pic, nil
}
