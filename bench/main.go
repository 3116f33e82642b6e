// Bench measures DeployX beside what it is to be measured against, always in
// turns and in one run, and prints tables in Markdown and charts in SVG.
//
// It is for docs/performance.md and for anybody who doubts it. It is not a test:
// what must hold is held by the tests, as ratios.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// options are the flags.
type options struct {
	dir    string // holds the images
	out    string // holds what is to be published; "" prints only
	rounds int
	sizes  []int  // files in a tree
	try    string // path of binpash/try; "" leaves it out
	binary string // deployx
	only   string // names of rows begin with it
	most   int    // the largest size in huge
}

const usage = `usage: bench [flags] native|compare|huge|idle ...

native   programs inside a tree of 16 layers, beside a plain directory
compare  a command and its undo, beside what users would take instead
huge     very many files, very long paths, very large files: time, memory, growth
idle     wake-ups of an idle shell and an idle agent
`

func main() {
	o, what := parse()
	if os.Getenv(envInside) == "" {
		os.Exit(inside())
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fail(fmt.Errorf("make mounts private: %w", err))
	}
	runs := map[string]func(options) error{"native": native, "compare": compare, "huge": huge, "idle": idle}
	for _, w := range what {
		if err := runs[w](o); err != nil {
			fail(fmt.Errorf("%s: %w", w, err))
		}
	}
}

func parse() (o options, what []string) {
	flag.StringVar(&o.dir, "dir", "/dev/shm", "where the filesystem images go: memory, or a disk")
	flag.StringVar(&o.out, "out", "", "where charts are written")
	flag.IntVar(&o.rounds, "rounds", 5, "how often everything is measured")
	flag.StringVar(&o.try, "try", os.Getenv("TRY"), "the script try of github.com/binpash/try, if it is to be measured")
	flag.StringVar(&o.binary, "deployx", "bin/deployx", "the deployx to measure")
	flag.StringVar(&o.only, "only", "", "only rows whose names begin like this")
	flag.IntVar(&o.most, "most", 1_000_000, "the largest size in huge")
	sizes := flag.String("sizes", "100,10000", "files in the trees of compare; 1000000 needs 12 GB and an hour")
	flag.Usage = func() {
		fmt.Fprint(os.Stderr, usage) //nolint:errcheck // nowhere to tell
		flag.PrintDefaults()
	}
	flag.Parse()
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			fail(fmt.Errorf("-sizes: %q is no number of files", s))
		}
		o.sizes = append(o.sizes, n)
	}
	for _, p := range []*string{&o.dir, &o.binary, &o.try} {
		if abs, err := filepath.Abs(*p); *p != "" && err == nil {
			*p = abs // commands run elsewhere
		}
	}
	what = flag.Args()
	for _, w := range what {
		if !strings.Contains(" native compare huge idle ", " "+w+" ") {
			fail(fmt.Errorf("%q is none of native, compare, huge and idle", w))
		}
	}
	if len(what) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	return o, what
}

const envInside = "DEPLOYX_BENCH_INSIDE"

// inside runs this program again in a mount namespace of its own: whatever
// happens to it, its mounts and images go with it.
func inside() int {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), envInside+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fail(fmt.Errorf("get a mount namespace (be root): %w", err))
	}
	return c.ProcessState.ExitCode()
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err) //nolint:errcheck // nowhere to tell
	os.Exit(1)
}
