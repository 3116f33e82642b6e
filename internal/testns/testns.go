// Package testns gives a test binary a mount namespace of its own, so that its
// tests mount freely and all of it is gone when the process is, however it
// ends.
//
// It is for TestMain and for tests. It is not isolation: nothing but the mount
// table is private.
package testns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Propagation is how mounts travel between the tests' namespace and a parent
// of it, mount_namespaces(7).
type Propagation string

// The propagation types. A shared tree has no peers but the tests' own; a slave
// one has its master in a namespace that nothing runs in.
const (
	Private Propagation = "private"
	Shared  Propagation = "shared"
	Slave   Propagation = "slave"
)

// EnvPropagation chooses the propagation for a test binary that does not
// choose one itself.
const EnvPropagation = "DEPLOYX_TEST_PROPAGATION"

// envInside is set in the namespace: pid of the process that made it, and the
// namespace that it left.
const envInside = "DEPLOYX_TESTNS"

// Main is TestMain in one line: it runs the tests in a private mount namespace
// and exits. The process stays the same (it unshares and executes itself
// again), so that exit status, signals and time limits work as without.
//
// When there is no right to make a namespace: with CI=true that is a failure;
// else the tests run, and those that call Need are skipped.
//
// After the tests Main fails the run if they left a mount or a process behind.
func Main(m *testing.M) {
	p := Propagation(os.Getenv(EnvPropagation))
	if p == "" {
		p = Private
	}
	MainAs(m, p)
}

// MainAs is Main with a propagation.
func MainAs(m *testing.M, p Propagation) {
	if !Inside() {
		err := enter(p)
		fmt.Fprintf(os.Stderr, "testns: NO PRIVATE MOUNT NAMESPACE: %v\n", err)
		if inCI() || !errors.Is(err, unix.EPERM) {
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if !owner() {
		os.Exit(m.Run()) // a helper process of a test: its parent looks after it
	}
	if err := propagate(p); err != nil {
		fmt.Fprintf(os.Stderr, "testns: %v\n", err)
		os.Exit(1)
	}
	os.Exit(runAndCheck(m))
}

func runAndCheck(m *testing.M) int {
	before, err := mountPoints()
	status := m.Run()
	left, leftErr := leftSince(before)
	for _, l := range left {
		fmt.Fprintf(os.Stderr, "testns: left behind: %s\n", l)
	}
	if err = errors.Join(err, leftErr); err != nil {
		fmt.Fprintf(os.Stderr, "testns: look for what is left behind: %v\n", err)
	}
	if status == 0 && (err != nil || len(left) > 0) {
		return 1
	}
	return status
}

// Inside tells whether this process stands in a namespace that Main made.
func Inside() bool {
	_, outer, ok := strings.Cut(os.Getenv(envInside), " ")
	here, err := os.Readlink("/proc/self/ns/mnt")
	return ok && err == nil && here != outer
}

// owner tells whether this process is the one that made the namespace.
func owner() bool {
	pid, _, _ := strings.Cut(os.Getenv(envInside), " ")
	return pid == strconv.Itoa(os.Getpid())
}

// Need stops a test that is not in a private namespace: it fails in CI and is
// skipped, with the reason, anywhere else.
func Need(t testing.TB) {
	t.Helper()
	if Inside() {
		return
	}
	const why = "needs a private mount namespace: run as root, with testns.Main as TestMain"
	if inCI() {
		t.Fatal(why)
	}
	t.Skip(why)
}

// Kernel tells whether this kernel is that version or a newer one: what a test must
// find there. The code under test finds out by trying.
func Kernel(t testing.TB, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var x, y int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y); err != nil {
		t.Fatal(err)
	}
	return x > major || x == major && y >= minor
}

// NeedKernel skips a test of what older kernels cannot do, and names it.
func NeedKernel(t testing.TB, major, minor int, what string) {
	t.Helper()
	if !Kernel(t, major, minor) {
		t.Skipf("NOT ON THIS KERNEL: %s (Linux %d.%d)", what, major, minor)
	}
}

// Emulated holds where a processor is played by a program (make vm-test): everything
// takes some twenty times as long there, and nothing is as quick as it is meant to be.
func Emulated() bool { return os.Getenv("DEPLOYX_TEST_EMULATED") != "" }

func inCI() bool { return os.Getenv("CI") == "true" }

// enter unshares and executes the test binary again. It returns only with an
// error. Only the calling thread changes namespace, and execve(2) makes that
// thread the whole process.
func enter(p Propagation) error {
	runtime.LockOSThread()
	outer, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := isolate(p); err != nil {
		return err
	}
	if err := os.Setenv(envInside, fmt.Sprintf("%d %s", os.Getpid(), outer)); err != nil {
		return err
	}
	return os.NewSyscallError("execve", unix.Exec(self, os.Args, os.Environ()))
}

// isolate moves the calling thread to a namespace that neither sends mounts to
// the machine's nor receives any. A slave needs a master: a namespace between,
// which a descriptor that is inherited keeps there.
func isolate(p Propagation) error {
	if err := unshare(); err != nil {
		return err
	}
	if err := propagate(Private); err != nil || p != Slave {
		return err
	}
	if err := propagate(Shared); err != nil {
		return err
	}
	if _, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY, 0); err != nil {
		return fmt.Errorf("keep the master's namespace: %w", err)
	}
	return unshare()
}

func unshare() error {
	return os.NewSyscallError("unshare(CLONE_NEWNS)", unix.Unshare(unix.CLONE_NEWNS))
}

func propagate(p Propagation) error {
	flags := map[Propagation]uintptr{Private: unix.MS_PRIVATE, Shared: unix.MS_SHARED, Slave: unix.MS_SLAVE}
	flag, ok := flags[p]
	if !ok {
		return fmt.Errorf("propagation %q: private, shared or slave", p)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|flag, ""); err != nil {
		return fmt.Errorf("make / r%s: %w", p, err)
	}
	return nil
}
