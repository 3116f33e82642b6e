// Package snapshottest is the conformance suite of snapshot.Driver: any driver
// passes it in one line.
//
// It drives the driver's tree and a plain directory with the same operations,
// and compares whole trees after every step and every change of view. It needs
// root and a private mount namespace (deployx/internal/testns). It does not
// measure speed, and it knows nothing of how a driver keeps its layers.
package snapshottest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"deployx/internal/testns"
	"deployx/snapshot"
)

// Open opens the driver under test on tree, with its files in the directory
// state. Both exist. It is called again with the same directories to reopen,
// also while an older instance is closed or its process was killed. It fails t
// when it cannot.
type Open func(t *testing.T, tree, state string) snapshot.Driver

// Options are what a driver cannot do exactly, and where to run. The zero value
// is a driver that does everything exactly, on the file system of t.TempDir.
//
// An option does not leave a check out: it says what else is exact.
type Options struct {
	// SplitsHardLinks: a file that has several names when a layer goes on top is
	// from then on one file for each name, beginning with the first change
	// through that name. So overlayfs with index=off.
	SplitsHardLinks bool
	// CountsLayers: link counts have the names that a file has in other layers in
	// them.
	CountsLayers bool
	// NoWhiteoutDevices: a character device 0/0 cannot be made in the tree
	// (EPERM), since it means "deleted" to overlayfs.
	NoWhiteoutDevices bool
	// LosesFlags: the immutable and append-only flags (chattr) that were set in
	// the open layer are gone when another goes on top. overlayfs keeps them in
	// an attribute that it reads from the upper layer only.
	LosesFlags bool
	// OpenTouches: the first open for writing of a file whose attributes, but not
	// contents, were changed in the open layer sets its modification time, even if
	// nothing is written. So overlayfs with metacopy=on.
	OpenTouches bool
	// LongRenames: what is in base or a sealed layer at a path longer than 256
	// bytes cannot go to another parent (EXDEV), if it is a directory or, with
	// OpenTouches, a file, which cannot get another name either: overlayfs's
	// redirect_max.
	LongRenames bool
	// Gap: a path lookup during Show may miss, or find base.
	Gap bool
	// Place makes the directories for one test. Nil: on a file system in memory.
	Place func(t *testing.T) Place
	// FS is the type of the file system in memory: ext4 (default), xfs, btrfs.
	FS string
	// Apart puts the driver's files on a file system of their own.
	Apart bool

	quick bool // for the suite's own tests
	held  bool // see Held
}

// Place is where one test runs. Tree and Plain are on the same file system and
// empty.
type Place struct {
	Tree  string // what the driver keeps
	State string // the driver's files
	Plain string // the directory to compare with, and its copies beside it
}

// holeSlack is by how much holes may differ, in bytes. overlayfs copies up in
// blocks of 1 MiB (OVL_COPY_UP_CHUNK_SIZE) and fills what holes are in them.
const holeSlack = 4 << 20

// Run runs the whole suite with the zero Options.
func Run(t *testing.T, open Open) { Options{}.Run(t, open) }

// Run runs the whole suite.
func (o Options) Run(t *testing.T, open Open) {
	o = o.placed(t)
	t.Run("named", func(t *testing.T) { o.Named(t, open) })
	t.Run("random", func(t *testing.T) { o.Random(t, open) })
	t.Run("commit", func(t *testing.T) { o.Commit(t, open) })
	t.Run("contract", func(t *testing.T) { o.Contract(t, open) })
}

// placed fills in Place: directories on an image that t and its subtests share.
// Making a file takes 30 µs there, and up to a millisecond on a full disk.
func (o Options) placed(t *testing.T) Options {
	t.Helper()
	if o.Place != nil {
		return o
	}
	img := testns.NewImage(t, testns.ImageOptions{Type: o.FS, Size: imageSize})
	o.Place = func(t *testing.T) Place { return placeIn(t, img.Dir) }
	if o.Apart {
		other := testns.NewImage(t, testns.ImageOptions{Type: o.FS, Size: imageSize})
		o.Place = func(t *testing.T) Place {
			p := placeIn(t, img.Dir)
			p.State = placeIn(t, other.Dir).State
			return p
		}
	}
	return o
}

// imageSize is how much the longest sequence may write, in bytes. Only what it
// does write takes memory.
const imageSize = 2 << 30

func placeIn(t *testing.T, parent string) Place {
	t.Helper()
	testns.Need(t)
	dir, err := os.MkdirTemp(parent, "place")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	p := Place{
		Tree:  filepath.Join(dir, "site", "tree"),
		State: filepath.Join(dir, "state"),
		Plain: filepath.Join(dir, "plain", "now"),
	}
	for _, d := range []string{p.Tree, p.State, p.Plain} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// EnvSeed sets the seed of the random sequences, to repeat one that failed;
// EnvSoak multiplies their number and length.
const (
	EnvSeed = "DEPLOYX_TEST_SEED"
	EnvSoak = "DEPLOYX_TEST_SOAK"
)

// envInt reads a number from the environment, or gives def.
func envInt(t *testing.T, name string, def int64) int64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return def
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(fmt.Errorf("%s: %w", name, err))
	}
	return n
}
