package main

import (
	"os"
	"os/exec"
)

// idle runs the tests that count wake-ups, with all that they say.
func idle(options) error {
	c := exec.Command("go", "test", "./integration", "-count=1", "-v", "-run", "^TestIdle")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	return c.Run()
}
