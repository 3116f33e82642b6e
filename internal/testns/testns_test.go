package testns_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"deployx/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func TestImages(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			testns.LeftBehind(t)
			img := testns.NewImage(t, testns.ImageOptions{Type: fs})
			name := filepath.Join(img.Dir, "f")
			if err := os.WriteFile(name, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			img.Unmount()
			if _, err := os.Stat(name); err == nil {
				t.Error("file is there after Unmount")
			}
			img.Mount()
			if got, err := os.ReadFile(name); err != nil || string(got) != "x" {
				t.Errorf("after Mount: %q, %v", got, err)
			}
		})
	}
}

// envLeave makes TestLeave leave something behind, in a child.
const envLeave = "TESTNS_LEAVE"

func TestLeave(t *testing.T) {
	what, dir, _ := strings.Cut(os.Getenv(envLeave), " ")
	switch what {
	case "mount":
		if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	case "process":
		cmd := exec.Command("sleep", "60")
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	default:
		t.Skip("only as a child of TestLeftBehind")
	}
}

// TestLeftBehind runs the test binary in a namespace of its own: what a test
// leaves there must fail the run.
func TestLeftBehind(t *testing.T) {
	testns.Need(t)
	for _, what := range []string{"mount", "process"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestLeave$")
		cmd.Env = append(os.Environ(), envLeave+"="+what+" "+t.TempDir(), "DEPLOYX_TESTNS=")
		out, err := cmd.CombinedOutput()
		if err == nil || !bytes.Contains(out, []byte("left behind")) {
			t.Errorf("a %s: %v\n%s", what, err, out)
		}
	}
}

func TestPropagation(t *testing.T) {
	testns.Need(t)
	for kind, tag := range map[string]string{"private": "- ", "shared": "shared:", "slave": "master:"} {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestRoot$", "-test.v")
		cmd.Env = append(os.Environ(), "DEPLOYX_TESTNS=", testns.EnvPropagation+"="+kind)
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte(tag)) {
			t.Errorf("%s: no %q in the line of /: %v\n%s", kind, tag, err, out)
		}
	}
}

// TestRoot prints how the root is mounted.
func TestRoot(t *testing.T) {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/"))
	if err != nil || len(infos) != 1 {
		t.Fatal(infos, err)
	}
	t.Logf("/ %s- ", infos[0].Optional)
}
