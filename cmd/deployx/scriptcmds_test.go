package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"deployx/internal/testns"
	"deployx/internal/treecmp"
)

// scriptPatience bounds every wait of a script.
const scriptPatience = 20 * time.Second

// exits N COMMAND…: the command ends with exactly this status.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS COMMAND...")
	}
	status(ts, args[0], ts.Exec(args[1], args[2:]...))
}

func status(ts *testscript.TestScript, want string, err error) {
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if strconv.Itoa(got) != want {
		ts.Fatalf("exit status %d, want %s", got, want)
	}
}

// signal SIG FILE N COMMAND…: once the command has made the file, it gets the
// signal, and ends with this status.
func signalCmd(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: signal SIG FILE STATUS COMMAND...")
	}
	c := exec.Command(args[3], args[4:]...) //nolint:gosec // a test's
	c.Dir, c.Stdout, c.Stderr = ts.MkAbs("."), ts.Stdout(), ts.Stderr()
	c.Env = environ(ts)
	ts.Check(c.Start())
	file := ts.MkAbs(args[1])
	if !eventually(func() bool { _, err := os.Lstat(file); return err == nil }) {
		_ = c.Process.Kill()
		ts.Logf("%v", c.Wait())
		ts.Fatalf("%s was not made", args[1])
	}
	ts.Check(c.Process.Signal(unix.SignalNum("SIG" + args[0])))
	status(ts, args[2], c.Wait())
}

func environ(ts *testscript.TestScript) []string {
	var env []string
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "WORK", "TREE", "DEPLOYX_STATE", "DEPLOYX_MIN_FREE", "LANG", "DEPLOYX_TESTNS", envDriver} {
		if v := ts.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

func eventually(ok func() bool) bool {
	for end := time.Now().Add(scriptPatience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// until COMMAND…: the command is run until it succeeds.
func until(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: until COMMAND...")
	}
	if !eventually(func() bool { return ts.Exec(args[0], args[1:]...) == nil }) {
		ts.Fatalf("did not happen in %s", scriptPatience)
	}
}

type pictures struct{}

// picture NAME DIR: take a picture of everything below DIR.
func picture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: picture NAME DIR")
	}
	p, err := treecmp.Take(ts.MkAbs(args[1]))
	ts.Check(err)
	ts.Value(pictures{}).(map[string]any)[args[0]] = p
}

// same NAME DIR: DIR looks as in the picture, to the nanosecond.
func same(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: same NAME DIR")
	}
	want, ok := ts.Value(pictures{}).(map[string]any)[args[0]].(treecmp.Picture)
	if !ok {
		ts.Fatalf("no picture %s was taken", args[0])
	}
	got, err := treecmp.Take(ts.MkAbs(args[1]))
	ts.Check(err)
	d := treecmp.Diff(want, got, treecmp.Options{AnyGroups: true, AnyNlink: true})
	if neg && len(d) == 0 {
		ts.Fatalf("nothing changed")
	}
	if !neg && len(d) > 0 {
		ts.Fatalf("not as it was:\n%s", d)
	}
}

// mounted DIR: something is mounted on DIR. Not so with a driver that copies.
func mounted(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: mounted DIR")
	}
	dir := ts.MkAbs(args[0])
	points, err := testns.MountsBelow(dir)
	ts.Check(err)
	found := false
	for _, p := range points {
		found = found || p == dir
	}
	if want := !neg && ts.Getenv(envDriver) != "copy"; found != want {
		ts.Fatalf("mounted: %v, want %v", found, want)
	}
}

// id VAR N [FLAG…]: put the id of the Nth newest snapshot into VAR, with
// deployx log's flags.
func snapshotID(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: id VAR N [FLAG...]")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	c := exec.Command("deployx", append([]string{"log", "--json", "--tree", ts.Getenv("TREE")}, args[2:]...)...) //nolint:gosec // a test's
	c.Env = environ(ts)
	out, err := c.Output()
	ts.Check(err)
	var list []struct {
		ID string `json:"snapshot_id"`
	}
	ts.Check(json.Unmarshal(out, &list))
	if n < 1 || n > len(list) {
		ts.Fatalf("there are %d snapshots", len(list))
	}
	ts.Setenv(args[0], list[n-1].ID)
}

// image VAR BYTES [INODES]: mount an ext4 file system of this size and put its
// directory into VAR.
func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: image VAR BYTES [INODES]")
	}
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	o := testns.ImageOptions{Size: size}
	if len(args) > 2 {
		o.Inodes, err = strconv.Atoi(args[2])
		ts.Check(err)
	}
	t := ts.Value(testT{}).(testing.TB)
	i := testns.NewImage(t, o)
	ts.Defer(func() { unmountBelow(t, i.Dir) })
	ts.Setenv(args[0], i.Dir)
}

type testT struct{}

// sub VAR PATTERN…
func sub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: sub VAR FROM TO")
	}
	from, err := strconv.Atoi(args[1])
	ts.Check(err)
	to, err := strconv.Atoi(args[2])
	ts.Check(err)
	ts.Setenv(args[0], strings.Clone(ts.Getenv(args[0])[from:to]))
}
