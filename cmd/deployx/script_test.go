package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

// envDriver makes every deployx of a script use one driver.
const envDriver = "DEPLOYX_TEST_DRIVER"

// TestMain serves three roles of this binary: the deployx that scripts call, the
// test run that moves into a namespace of its own, and the same inside it.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) != "deployx" && !testns.Inside() {
		testns.Main(m)
	}
	testscript.Main(m, map[string]func(){"deployx": deployx})
}

func deployx() {
	args := os.Args[1:]
	if d := os.Getenv(envDriver); d != "" && len(args) > 0 {
		args = append([]string{"--driver", d}, args...)
	}
	last := func() {}
	if os.Getenv(envFiles) != "" {
		last = noteFiles()
	}
	code := Main(args, os.Stdin, os.Stdout, os.Stderr)
	last()
	os.Exit(code)
}

// TestScripts runs every script with the driver that this host gets, and once
// more with the copy driver.
func TestScripts(t *testing.T) { runScripts(t, "testdata/script") }

// TestScriptsAlone runs those that no other script's tree may be mounted beside:
// they make mount namespaces, which hold a copy of every mount.
func TestScriptsAlone(t *testing.T) { runScripts(t, "testdata/alone") }

func runScripts(t *testing.T, dir string) {
	for _, driver := range []string{"", "copy"} {
		t.Run(or(driver, "auto"), func(t *testing.T) {
			testns.Need(t)
			testns.LeftBehind(t)
			p := scripts(dir, driver)
			p.WorkdirRoot = shortDir(t)
			testscript.Run(t, p)
		})
	}
}

// shortDir is a directory for sockets, whose paths have 107 bytes. Without one,
// testscript leaves its own behind when not all scripts are run.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func scripts(dir, driver string) testscript.Params {
	return testscript.Params{
		Dir: dir, RequireExplicitExec: false, RequireUniqueNames: true, UpdateScripts: os.Getenv("UPDATE") != "",
		Setup: func(e *testscript.Env) error { return prepare(e, driver) },
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "copy", "overlay":
				return (cond == "copy") == (driver == "copy"), nil
			case "systemd":
				_, err := os.Stat("/run/systemd/system")
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "until": until, "picture": picture, "same": same, "mounted": mounted,
			"id": snapshotID, "image": image, "signal": signalCmd, "sub": sub,
		},
	}
}

// prepare gives a script a tree of its own, $TREE, and a state directory.
func prepare(e *testscript.Env, driver string) error {
	tree := filepath.Join(e.WorkDir, "srv", "app")
	e.Setenv("TREE", tree)
	e.Setenv("DEPLOYX_STATE", filepath.Join(e.WorkDir, "state"))
	e.Setenv("LANG", "C.UTF-8")
	readme, err := filepath.Abs(filepath.Join("..", "..", "README.md"))
	if err != nil {
		return err
	}
	e.Setenv("README", readme)
	if driver != "" {
		e.Setenv(envDriver, driver)
	}
	e.Values[pictures{}] = map[string]any{}
	e.Values[testT{}] = e.T()
	e.Defer(func() { nothingLeft(e.T().(testing.TB), e.WorkDir) })
	return os.MkdirAll(tree, 0o755)
}

// nothingLeft checks, after a script, that only what the product promises is
// left: trees that are still shown. Those are unmounted.
func nothingLeft(t testing.TB, dir string) {
	t.Helper()
	for pid, cmd := range processesOf(dir) {
		t.Errorf("left running: %d %q", pid, cmd)
		_ = unix.Kill(pid, unix.SIGKILL)
		eventually(func() bool { return unix.Kill(pid, 0) != nil || len(lookFor(dir)) == 0 })
	}
	unmountBelow(t, dir)
	for _, name := range strays(dir) {
		t.Errorf("left behind: %s", name)
	}
}

func unmountBelow(t testing.TB, dir string) {
	t.Helper()
	mounts, err := testns.MountsBelow(dir)
	if err != nil {
		t.Error(err)
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i] == dir {
			continue // an image: its own clean-up unmounts it
		}
		if err := unix.Unmount(mounts[i], unix.UMOUNT_NOFOLLOW); err != nil {
			t.Errorf("unmount %q after the script: %v", mounts[i], err)
		}
	}
}

// strays are the temporary files that deployx makes.
func strays(dir string) (found []string) {
	tmp, err := os.ReadDir(filepath.Join(dir, ".tmp"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return []string{err.Error()}
	}
	for _, f := range tmp {
		found = append(found, filepath.Join(".tmp", f.Name()))
	}
	state, err := filepath.Glob(filepath.Join(dir, "state", "trees", "*", "*"))
	if err != nil {
		return append(found, err.Error())
	}
	more, err := filepath.Glob(filepath.Join(dir, "state", "trees", "*", "record", "*"))
	if err != nil {
		return append(found, err.Error())
	}
	for _, f := range append(state, more...) {
		if strings.HasSuffix(f, ".tmp") || strings.Contains(filepath.Base(f), "probe-") {
			found = append(found, f)
		}
	}
	return found
}

// processesOf are processes with dir in their environment, which every shell of
// a tree below it has, or their command line, which a reader of late output has.
// One that is just ending gets a moment.
func processesOf(dir string) (found map[int]string) {
	for range 100 {
		if found = lookFor(dir); len(found) == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return found
}

func lookFor(dir string) map[int]string {
	found := map[int]string{}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	for _, p := range procs {
		env, err := os.ReadFile(filepath.Join(p, "environ"))
		pid, bad := strconv.Atoi(filepath.Base(p))
		cmd, err2 := os.ReadFile(filepath.Join(p, "cmdline"))
		if errors.Join(err, bad, err2) != nil || len(cmd) == 0 || pid == os.Getpid() {
			continue
		}
		if strings.Contains(string(env)+string(cmd), dir+"/") {
			found[pid] = string(cmd)
		}
	}
	return found
}
