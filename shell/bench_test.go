package shell

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		if _, err := p.await(b.Context(), nonce); err != nil {
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

// BenchmarkThroughput moves 256 MiB a round to a file and to a Writer.
func BenchmarkThroughput(b *testing.B) {
	const size = 256 << 20
	b.Run("file", func(b *testing.B) {
		b.SetBytes(size)
		f, err := os.Create(filepath.Join(b.TempDir(), "out"))
		if err != nil {
			b.Fatal(err)
		}
		defer f.Close()
		s := start(b, Options{})
		for b.Loop() {
			f.Truncate(0)
			f.Seek(0, 0)
			if _, err := s.Run(b.Context(), Command{Text: fmt.Sprintf("yes | head -c %d", size), Stdout: f}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("writer", func(b *testing.B) {
		b.SetBytes(size)
		bench(b, start(b, Options{}), Command{Text: fmt.Sprintf("yes | head -c %d", size), Stdout: &meter{}})
	})
}

func BenchmarkLongText(b *testing.B) {
	b.SetBytes(1 << 20)
	bench(b, start(b, Options{}), Command{Text: ": '" + strings.Repeat("x", 1<<20) + "'"})
}
