package session

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"deployx/internal/testns"
)

// server starts a program from the tree that has a file of it open, and waits
// until it runs.
func (r *rig) server(t *testing.T, dir, text string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(r.tree, "bash"), append([]string{"-c", text + "; echo up; read x"}, args...)...)
	cmd.Dir = dir
	in, out := testns.Start(t, cmd)
	t.Cleanup(func() {
		if err := errors.Join(in.Close(), cmd.Wait()); err != nil && cmd.ProcessState.ExitCode() != 1 { // read found the end
			t.Error(err)
		}
	})
	if line := testns.Line(t, out); line != "up\n" {
		t.Fatal(line)
	}
	return cmd
}

func ofPID(list []Stale, pid int) (why []string) {
	for _, s := range list {
		if s.PID == pid {
			why = append(why, s.Path+" "+s.Why)
		}
	}
	return why
}

// TestStale: a process that runs a program, or reads a file, that an undo
// replaced or removed is named; one with files that stayed is not.
func TestStale(t *testing.T) {
	onBoth(t, func(t *testing.T, r *rig) {
		r.outside("cp $(command -v bash) bash; echo same > same; echo old > old")
		r.in("echo 1 > one")
		id := r.in("cp bash new && mv new bash; echo new > old; echo x > gone; mkdir d").Snapshot.ID
		stale := r.server(t, "/", "exec 3<"+r.tree+"/old 4<"+r.tree+"/same 5<"+r.tree+"/gone")
		calm := exec.Command("sleep", "1000")
		calm.Dir = "/"
		f, err := os.Open(filepath.Join(r.tree, "same"))
		if err != nil {
			t.Fatal(err)
		}
		calm.ExtraFiles = []*os.File{f}
		if err := errors.Join(calm.Start(), f.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := calm.Process.Kill(); err != nil {
				t.Error(err)
			}
			_ = calm.Wait() // killed
		})
		if testns.Kernel(t, 6, 8) && os.Getenv(envOld) == "" {
			r.in("echo later > later; touch same2") // a process may hold a view of long ago
		}
		u := r.rollback(id)
		got := strings.Join(ofPID(u.Stale, stale.Process.Pid), "; ")
		if got != "bash executable reverted; old open file reverted; gone open file removed" {
			t.Errorf("stale: %q in %+v", got, u.Stale)
		}
		if why := ofPID(u.Stale, calm.Process.Pid); len(why) > 0 {
			t.Errorf("a process whose file did not change: %q", why)
		}
		u, err = r.Redo(context.Background(), 1, RollbackOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if why := ofPID(u.Stale, calm.Process.Pid); len(why) > 0 {
			t.Errorf("redo: a process whose file did not change: %q", why)
		}
	})
}

func TestUnitIn(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/nginx.service\n":                                      "nginx.service",
		"0::/system.slice/system-getty.slice/getty@tty1.service\n":              "getty@tty1.service",
		"0::/user.slice/user-0.slice/session-3.scope\n":                         "session-3.scope",
		"0::/system.slice/docker-0123.scope/init\n":                             "docker-0123.scope",
		"12:pids:/x.service\n1:name=systemd:/system.slice/cron.service\n0::/\n": "cron.service",
		"0::/system.slice/php8.2-fpm.service/worker\n":                          "php8.2-fpm.service",
		"0::/\n": "",
		"":       "",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.service\n":              "app-x.service",
		"4:memory:/system.slice/a.service\n0::/kubepods.slice/pod1/cri-containerd-0.scope\nbad\n": "cri-containerd-0.scope",
	} {
		if got := unitIn(cgroup); got != want {
			t.Errorf("%q: want %q, got %q", cgroup, want, got)
		}
	}
}

// TestRestartStale restarts each unit once, by a systemctl that only notes what
// it was told.
func TestRestartStale(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	fake := "#!/bin/sh\necho \"$@\" >> " + dir + "/told\ncase \"$*\" in *bad*) echo no such unit; exit 5;; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(fake), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		stale       []Stale
		units, told string
		not         []NotRestarted
	}{
		{nil, "", "", nil},
		{[]Stale{{PID: 1, Unit: "a.service"}, {PID: 2, Unit: "a.service"}, {PID: 3, Unit: "b@1.service"}}, "a.service b@1.service", "restart -- a.service\nrestart -- b@1.service\n", nil},
		{
			[]Stale{{PID: 7, Name: "x", Unit: "session-1.scope"}, {PID: 1, Unit: "a.service"}, {PID: 7, Name: "x"}, {PID: 8, Name: "y"}},
			"a.service", "restart -- a.service\n",
			[]NotRestarted{{PID: 7, Name: "x", Error: "it belongs to no systemd service"}, {PID: 8, Name: "y", Error: "it belongs to no systemd service"}},
		},
		{
			[]Stale{{PID: 1, Unit: "bad.service"}, {PID: 2, Unit: "a.service"}},
			"a.service", "restart -- bad.service\nrestart -- a.service\n",
			[]NotRestarted{{Unit: "bad.service", Error: "systemctl restart: exit status 5: no such unit"}},
		},
	} {
		told := filepath.Join(dir, "told")
		if err := os.WriteFile(told, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		units, not := RestartStale(context.Background(), c.stale)
		b, err := os.ReadFile(told)
		if err != nil || strings.Join(units, " ") != c.units || string(b) != c.told || !slices.Equal(not, c.not) {
			t.Errorf("%+v: restarted %q, not %+v; told %q, %v", c.stale, units, not, b, err)
		}
	}
	t.Setenv("PATH", filepath.Join(dir, "empty"))
	_, not := RestartStale(context.Background(), []Stale{{PID: 1, Unit: "a.service"}})
	if err := RestartError(not); err == nil || !strings.Contains(err.Error(), "a.service: this host has no systemctl") {
		t.Error(err)
	}
	if err := RestartError(nil); err != nil {
		t.Error(err)
	}
}
