package session

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"deployx/fallback"
	"deployx/internal/crash"
	"deployx/internal/testns"
	"deployx/overlay"
	"deployx/snapshot"
)

// server starts the tree's bash in a directory, has it do something, and waits until
// it has.
func (r *rig) server(t *testing.T, dir, text string, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(filepath.Join(r.tree, "bash"), "-c", text+"; echo up; read x")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
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

// TestStaleHolds: of each way to have a file of the tree it is told what an undo, and a
// redo, has made of it: by a swap, in a tree that is held, and by copying.
func TestStaleHolds(t *testing.T) {
	const held = "held"
	for _, way := range []string{overlay.Name, held, fallback.Name} {
		t.Run(way, func(t *testing.T) {
			driver := way
			if way == held {
				driver = overlay.Name
			}
			r := newRigWith(t, t.TempDir(), driver)
			r.strict = true
			r.outside(`cp $(command -v bash) bash; cp $(ldd bash | awk '/tinfo/ {print $3}') same.so; cp same.so lib.so; cp same.so grown.so; mkdir same emptied`)
			r.in("echo 1 > one")
			if way == held {
				hold(t, filepath.Join(r.tree, "same"))
			}
			id := r.in(`for f in bash lib.so; do cp $f new; echo >> new; mv new $f; done; cp lib.so added.so; echo >> grown.so; rm -r emptied; mkdir emptied dir`).Snapshot.ID
			preload := func(names ...string) string {
				for i := range names {
					names[i] = filepath.Join(r.tree, names[i])
				}
				return "LD_PRELOAD=" + strings.Join(names, ":")
			}
			dirs := func(names ...string) (list []*exec.Cmd) { // who stands in the tree holds it
				for _, name := range names {
					if way == overlay.Name {
						name = "/"
					} else {
						name = filepath.Join(r.tree, name)
					}
					list = append(list, r.server(t, name, ":", preload("same.so")))
				}
				return list
			}
			maps := r.server(t, "/", ":", preload("lib.so", "added.so", "grown.so", "same.so"))
			stand := dirs("dir", "emptied", "same")
			told := func(u Undo, cmd *exec.Cmd, want ...string) {
				t.Helper()
				got := ofPID(u.Stale, cmd.Process.Pid)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("stale: %q, want %q", got, want)
				}
			}
			u := r.rollback(id)
			if u.InPlace != (way == held) {
				t.Errorf("in place: %v", u.InPlace)
			}
			told(u, maps, "added.so mapped file removed", "bash executable reverted", "grown.so mapped file reverted", "lib.so mapped file reverted")
			in := []string{"bash executable reverted"}
			told(u, stand[1], in...)
			told(u, stand[2], in...)
			if way != overlay.Name {
				in = append(in, "dir working directory removed")
			}
			told(u, stand[0], in...)

			before := r.server(t, "/", ":", preload("lib.so", "grown.so", "same.so"))
			u, err := r.Redo(context.Background(), 1, RollbackOptions{})
			if err != nil {
				t.Fatal(err)
			}
			told(u, before, "bash executable reverted", "grown.so mapped file reverted", "lib.so mapped file reverted")
		})
	}
}

// TestStaleLong: one that was started some views ago is named by an undo in a tree that
// is held, if it goes on with what was undone.
func TestStaleLong(t *testing.T) {
	testns.NeedKernel(t, 6, 8, "mounts have ids of their own")
	if os.Getenv(envOld) != "" {
		return // that was the old way
	}
	r := newRig(t)
	r.strict = true
	r.outside("cp $(command -v bash) bash; cp bash same; mkdir d")
	r.in("echo 1 > one")
	before := r.server(t, "/", ":")
	id := r.in("cp bash new; echo >> new; mv new bash").Snapshot.ID
	after := r.server(t, "/", ":")
	r.in("echo 2 > two")
	r.in("echo 3 > three")
	hold(t, filepath.Join(r.tree, "d"))
	u := r.rollback(id)
	if why := ofPID(u.Stale, after.Process.Pid); !u.InPlace || !slices.Equal(why, []string{"bash executable reverted"}) {
		t.Errorf("in place %v: %q", u.InPlace, why)
	}
	if why := ofPID(u.Stale, before.Process.Pid); len(why) > 0 {
		t.Errorf("one that has what the tree shows again: %q", why)
	}
}

// TestReplacedProgram: a program that goes on while a command replaces it keeps no later
// command from having a rollback point of its own.
func TestReplacedProgram(t *testing.T) {
	r := newRig(t)
	r.strict = true
	var back atomic.Bool
	defer crash.SetHook(func(at string) {
		if at == "overlay.back.noted" {
			back.Store(true)
		}
	})()
	r.outside("cp $(command -v bash) bash; echo 0 > f; echo 0 > g")
	r.in("echo 1 > f")
	server := r.server(t, "/", ":")
	one := r.in("cp bash new; echo >> new; mv new bash").Snapshot
	two := r.in("echo 2 > f").Snapshot
	three := r.in("echo 3 > g").Snapshot
	for _, e := range []snapshot.Snapshot{two, three} {
		if e.SharedWith != "" || e.Mode != snapshot.ModeSealed || len(e.PinnedBy) == 0 || e.PinnedBy[0].PID != server.Process.Pid {
			t.Errorf("%+v", e)
		}
	}
	r.rollback(three.ID)
	r.shows("three undone", map[string]string{"f": "2\n", "g": "0\n"})
	if u := r.rollback(one.ID); len(ofPID(u.Stale, server.Process.Pid)) > 0 {
		t.Errorf("it has what the tree shows again: %+v", u.Stale)
	}
	r.shows("one undone", map[string]string{"f": "1\n"})
	if back.Load() {
		t.Error("a swap was tried that could not be")
	}
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
