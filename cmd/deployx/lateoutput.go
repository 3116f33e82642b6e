package main

import (
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"deployx/session"
)

// lateOutput names the command that deployx calls itself with.
const lateOutput = "late-output"

// lateOutputCmd reads what jobs print when the deployx that ran their command is
// gone. It ends when they do: whatever else ended it, at shutdown too, would end a
// job that prints.
func (a *app) lateOutputCmd() *cobra.Command {
	return &cobra.Command{
		Use: lateOutput, Short: "Keep what jobs print (deployx calls this itself)", Hidden: true, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			signal.Ignore(unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			os.WriteFile("/proc/self/comm", []byte("deployx"), 0) //nolint:errcheck // else it is called exe
			if err := session.ReadLate(args); err != nil {
				return usageError{err}
			}
			return nil
		},
	}
}
