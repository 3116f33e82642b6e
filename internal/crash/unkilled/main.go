// Command unkilled names the crash points that no test was killed at, and fails if
// there are any: the end of make points.
package main

import (
	"fmt"
	"os"

	"deployx/internal/crash/crashtest"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: unkilled ROOT FILE, as DEPLOYX_TEST_KILLED=FILE go test ./... has left it")
		os.Exit(2)
	}
	left, err := crashtest.Unkilled(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "no test is killed at", l)
	}
	if len(left) > 0 {
		os.Exit(1)
	}
}
