package shell

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func bench(b *testing.B, s *Shell, c Command) {
	b.Helper()
	for b.Loop() {
		if _, err := s.Run(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRun is a command that does nothing, with all that surrounds it.
func BenchmarkRun(b *testing.B) {
	for _, p := range programs {
		b.Run(p, func(b *testing.B) {
			bench(b, start(b, Options{Program: p}), Command{Text: ":"})
		})
	}
}

// BenchmarkBare is the protocol without the capture.
func BenchmarkBare(b *testing.B) {
	s := start(b, Options{})
	st, err := parseContext(s.Context())
	if err != nil {
		b.Fatal(err)
	}
	p, nonce := s.current(), newNonce()
	for b.Loop() {
		sc := s.between(st, ":\n", nonce)
		sc.post = s.dialect.tell(nonce, "0") + "__deployx_d=1\n"
		if err := s.submit(p, sc); err != nil {
			b.Fatal(err)
		}
		if _, err := p.await(b.Context(), nonce, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCapture is Run in a shell with much to capture.
func BenchmarkCapture(b *testing.B) {
	for _, n := range []int{0, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			s := start(b, Options{})
			var text strings.Builder
			for i := range n {
				fmt.Fprintf(&text, "v%d='value number %d'; f%d() { echo %d; }; alias a%d=true\n", i, i, i, i, i)
			}
			if _, err := s.Run(b.Context(), Command{Text: text.String() + ":"}); err != nil {
				b.Fatal(err)
			}
			bench(b, s, Command{Text: ":"})
		})
	}
}

func BenchmarkOutput(b *testing.B) {
	bench(b, start(b, Options{}), Command{Text: "echo hi", Stdout: &meter{}, Stderr: &meter{}})
}

func BenchmarkTTY(b *testing.B) { bench(b, start(b, Options{}), Command{Text: ":", TTY: &TTY{}}) }

func BenchmarkUser(b *testing.B) {
	bench(b, start(b, Options{User: "nobody"}), Command{Text: "echo hi", Stdout: &meter{}})
}

func BenchmarkLeaveEnter(b *testing.B) {
	s := start(b, Options{Dir: "/usr"})
	for b.Loop() {
		if err := s.Leave(b.Context()); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Enter(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		s, err := Start(b.Context(), Options{})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkThroughput moves 256 MiB a round to a Writer, and to a file on a disk and in
// memory: there the command writes itself, and plain bash does the same in turn.
func BenchmarkThroughput(b *testing.B) {
	const size = 256 << 20
	text := fmt.Sprintf("yes | head -c %d", size)
	b.Run("writer", func(b *testing.B) {
		b.SetBytes(size)
		bench(b, start(b, Options{}), Command{Text: text, Stdout: &meter{}})
	})
	for name, dir := range map[string]string{"disk": b.TempDir(), "memory": "/dev/shm"} {
		b.Run(name, func(b *testing.B) {
			f, err := os.CreateTemp(dir, "deployx-bench-")
			if err != nil {
				b.Fatal(err)
			}
			defer os.Remove(f.Name())
			defer f.Close()
			s := start(b, Options{})
			var ours, bash time.Duration
			for b.Loop() {
				ours += emptied(b, f, func() error {
					_, err := s.Run(b.Context(), Command{Text: text, Stdout: f})
					return err
				})
				bash += emptied(b, f, exec.Command("bash", "-c", text+" >'"+f.Name()+"'").Run)
			}
			for unit, d := range map[string]time.Duration{"MB/s": ours, "MB/s-bash": bash} {
				b.ReportMetric(float64(b.N)*size/1e6/d.Seconds(), unit)
			}
		})
	}
}

// emptied is the time that fill takes, with f empty before.
func emptied(b *testing.B, f *os.File, fill func() error) time.Duration {
	b.Helper()
	_, err := f.Seek(0, 0)
	if err = errors.Join(err, f.Truncate(0)); err != nil {
		b.Fatal(err)
	}
	began := time.Now()
	if err := fill(); err != nil {
		b.Fatal(err)
	}
	return time.Since(began)
}

func BenchmarkLongText(b *testing.B) {
	b.SetBytes(1 << 20)
	bench(b, start(b, Options{}), Command{Text: ": '" + strings.Repeat("x", 1<<20) + "'"})
}
