package shell

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// meter counts what is written to it and what it held at most.
type meter struct{ n int64 }

func (m *meter) Write(p []byte) (int, error) {
	m.n += int64(len(p))
	return len(p), nil
}

// Both ways of delivering, with the pace and the memory that the issue asks for.
func TestThroughput(t *testing.T) {
	if testing.Short() {
		t.Skip("copies 1 GiB")
	}
	s := start(t, Options{})
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	const size = 512 << 20
	forgetPeak(t)
	for _, w := range []io.Writer{file, &meter{}} {
		began := time.Now()
		runCommand(t, s, Command{Text: fmt.Sprintf("yes | head -c %d", size), Stdout: w})
		t.Logf("%T: %.0f MB/s", w, size/1e6/time.Since(began).Seconds())
		if m, ok := w.(*meter); ok && m.n != size {
			t.Errorf("%d bytes", m.n)
		}
	}
	limit := int64(64 << 20)
	if underRace() { // shadow memory
		limit *= 4
	}
	if peak := peakRSS(t); peak > limit {
		t.Errorf("peak of %d MiB resident", peak>>20)
	}
}

// underRace tells whether this test was built with the race detector.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// peakRSS is the most memory that this process had resident since forgetPeak: VmHWM in
// proc(5).
func peakRSS(t *testing.T) (n int64) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, line, _ := strings.Cut(string(text), "VmHWM:")
	if _, err := fmt.Sscanf(line, "%d kB", &n); err != nil {
		t.Fatal(err)
	}
	t.Logf("peak RSS: %d MiB", n>>10)
	return n << 10
}

func forgetPeak(t *testing.T) {
	t.Helper()
	debug.FreeOSMemory() // what other tests left
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// A writer that does not take anything stops the command.
func TestSlowReader(t *testing.T) {
	s := start(t, Options{})
	r, w := io.Pipe()
	marks := filepath.Join(t.TempDir(), "marks")
	done := make(chan Result, 1)
	go func() {
		text := "for i in 1 2 3 4 5 6 7 8; do head -c 1M /dev/zero; echo >>" + marks + "; done"
		res, _ := s.Run(context.Background(), Command{Text: text, Stdout: w})
		w.Close()
		done <- res
	}()
	if _, err := io.ReadFull(r, make([]byte, 3<<20)); err != nil {
		t.Fatal(err)
	}
	// At most: what was read, a pipe, a buffer. Nothing of the rest can have been written.
	if text, _ := os.ReadFile(marks); len(text) > 5 {
		t.Errorf("%d MiB written when 3 were read", len(text))
	}
	n, err := io.Copy(io.Discard, r)
	if n != 5<<20 || err != nil || (<-done).ExitCode != 0 {
		t.Error(n, err)
	}
}

// A writer that fails gives the command a broken pipe.
func TestBrokenWriter(t *testing.T) {
	s := start(t, Options{})
	r, w := io.Pipe()
	r.Close()
	_, _, res := runCommand(t, s, Command{Text: "yes", Stdout: w})
	if res.ExitCode != 141 || res.Signal != "SIGPIPE" {
		t.Errorf("%+v", res.ExitCode)
	}
}

func TestOutputComesAsItIsMade(t *testing.T) {
	s := start(t, Options{})
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(context.Background(), Command{Text: "while read x; do echo got $x; done", Stdin: inR, Stdout: outW})
	}()
	lines := bufio.NewReader(outR)
	for i := range 3 {
		fmt.Fprintln(inW, i)
		if got, _ := lines.ReadString('\n'); got != fmt.Sprintf("got %d\n", i) {
			t.Errorf("%q", got)
		}
	}
	inW.Close()
	<-done
}

// The running command ends when its owner is killed, jobs of earlier ones live on, and
// the next Start sweeps up.
func TestOwnerKilled(t *testing.T) {
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), "SHELL_TEST_OWNER=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	var earlier, job, shell, front int
	if _, err := fmt.Fscan(out, &earlier, &job, &shell, &front); err != nil {
		t.Fatal(err)
	}
	for !watched(c.Process.Pid) { // after some ms
		time.Sleep(time.Millisecond)
	}
	c.Process.Kill()
	c.Wait()
	for _, pid := range []int{shell, job, front} {
		waitGone(t, pid)
	}
	if !alive(earlier) {
		t.Error("the job of an earlier command is gone")
	}
	job = earlier
	unix.Kill(job, unix.SIGKILL)
	waitGone(t, job)
	s := start(t, Options{})
	if s.group.path == "" {
		return
	}
	left, _ := filepath.Glob(filepath.Join(filepath.Dir(s.group.path), fmt.Sprintf("%s%d-*", prefix, c.Process.Pid)))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// watched tells whether the owner has started its watcher.
func watched(owner int) bool {
	for _, pid := range allPIDs() {
		if stat(pid).ppid == owner && strings.Contains(image(pid), "Waits for its owner") {
			return true
		}
	}
	return false
}

func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("not root")
	}
	if _, err := lookup("nobody"); err != nil {
		t.Skip(err)
	}
	private := t.TempDir()
	if err := os.Chmod(private, 0o700); err != nil {
		t.Fatal(err)
	}
	each(t, func(t *testing.T, program string) {
		s := start(t, Options{Program: program, User: "nobody", Grace: quick})
		says(t, s, "id -un; id -G; echo $USER $LOGNAME; touch /root/x 2>/dev/null || echo denied", "nobody\n65534\nnobody nobody\ndenied\n")
		out, errs, _ := runCommand(t, s, Command{Text: "cat; echo err >&2", Stdin: strings.NewReader("in\n")})
		if out != "in\n" || errs != "err\n" {
			t.Errorf("%q %q", out, errs)
		}
		var shown bytes.Buffer
		if _, err := s.Run(t.Context(), Command{Text: "tty >/dev/tty; id -un", TTY: &TTY{Out: &shown}}); err != nil || !strings.Contains(shown.String(), "nobody") {
			t.Errorf("%q %v", shown.String(), err)
		}
		r, err := s.Run(t.Context(), Command{Text: stubborn["setsid"], Stdout: &trigger{nil, s.Interrupt}})
		if err != nil || r.ExitCode != 130 || len(r.Survivors) > 0 {
			t.Errorf("%+v %v", r.Survivors, err)
		}
		closed := start(t, Options{Program: program, User: "nobody", Dir: private, Away: true})
		if r, err := closed.Run(t.Context(), Command{Text: "pwd"}); err == nil || !strings.Contains(err.Error(), "may not enter "+private) {
			t.Errorf("a directory that is closed to the user: %+v %v", r, err)
		}
		again := start(t, Options{Program: program, User: "nobody", Context: s.Context()})
		says(t, again, "id -un", "nobody\n")
		if _, err := os.Stat(s.wires.dir); err != nil {
			t.Error(err)
		}
		s.Close()
		if _, err := os.Stat(s.wires.dir); err == nil {
			t.Error("directory left: " + s.wires.dir)
		}
	})
	if _, err := Start(t.Context(), Options{User: "no-such-user"}); err == nil {
		t.Error("no error for a user that does not exist")
	}
}

// What was in the stream at the command's end is the writer's, though the grace is
// over, the stream stays open and the writer is slow.
func TestDrain(t *testing.T) {
	w, err := newWires(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	stream, err := w.pipe(true)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.close()
	stream.grow()
	const size = 900_000 // fits into the pipe
	if _, err := stream.w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	var got meter
	grace, slow := make(chan struct{}), make(chan struct{})
	p := startPump(Stdout, stream.r, &trigger{&got, func() { <-slow }})
	go func() {
		grace <- struct{}{} // drain took it
		close(slow)
	}()
	if p.drain(grace, nil) || got.n != size {
		t.Errorf("%d of %d bytes when the command's end is told", got.n, size)
	}
	p.end()
}
