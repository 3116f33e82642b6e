package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// image is a filesystem of its own in a file that has no name any more, so that
// nothing stays of it.
type image struct{ dir string }

// newImage makes and mounts one. size is in GiB and sparse.
func newImage(o options, kind string, size int, args ...string) (image, error) {
	file, err := os.CreateTemp(o.dir, "deployx-bench-*.img")
	if err != nil {
		return image{}, err
	}
	defer os.Remove(file.Name()) //nolint:errcheck // below it is looked at
	if err := errors.Join(file.Truncate(int64(size)<<30), file.Close()); err != nil {
		return image{}, err
	}
	mkfs := append(append([]string{"-q"}, args...), file.Name())
	if err := command("", "mkfs."+kind, mkfs...); err != nil {
		return image{}, err
	}
	dir, err := os.MkdirTemp("", "deployx-bench-")
	if err != nil {
		return image{}, err
	}
	i := image{dir}
	if err := command("", "mount", "-o", "loop", file.Name(), dir); err != nil {
		return i, errors.Join(err, os.Remove(dir))
	}
	return i, nil
}

func (i image) close() error {
	if err := unix.Unmount(i.dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", i.dir, err)
	}
	return os.Remove(i.dir)
}

func (i image) path(parts ...string) string {
	return filepath.Join(append([]string{i.dir}, parts...)...)
}

// used is the space taken, in bytes.
func (i image) used() (int64, error) {
	var st unix.Statfs_t
	if err := errors.Join(syncAll(i.dir), unix.Statfs(i.dir, &st)); err != nil {
		return 0, err
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize, nil
}

func syncAll(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
}

// command runs a program and puts what it said into the error.
func command(dir, name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// shell runs a line.
func shell(dir, line string) error { return command(dir, "bash", "-c", line) }
