package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"deployx/internal/wire"
	"deployx/session"
)

type batchFlags struct {
	id                             string
	keepGoing, rollback, jsonInput bool
	timeout                        time.Duration
}

func (a *app) batchCmd() *cobra.Command {
	var f batchFlags
	c := &cobra.Command{
		Use:   "batch [flags] FILE|-",
		Short: "Run commands one after another in the same shell, a snapshot before each",
		Long: `Run the commands of a file, one a line, in the tree's shell with a snapshot
before each. Blank lines and lines that begin with # are skipped. With
--json-input the file is a JSON array of strings.

The batch stops at the first failure unless --keep-going is given. With
--rollback-on-failure a failure undoes the whole batch.

Exit status: that of the first command that failed, else 0; 125 if deployx
itself failed.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("name one file of commands, or - for standard input")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error { return a.batch(c.Context(), f, args[0]) },
	}
	c.Flags().StringVar(&f.id, "id", "", "the batch's `id` (default: a new one)")
	c.Flags().BoolVar(&f.keepGoing, "keep-going", false, "go on after a failure")
	c.Flags().BoolVar(&f.rollback, "rollback-on-failure", false, "undo the whole batch if a command fails")
	c.Flags().BoolVar(&f.jsonInput, "json-input", false, "the file is a JSON array of strings")
	limitVar(c.Flags(), &f.timeout, "timeout", "stop each command after this time (0: never)")
	a.session.register(c, true)
	return c
}

func (a *app) batch(ctx context.Context, f batchFlags, name string) error {
	if expected := wire.ExpectedOfID(f.id); expected != "" {
		return usageError{fmt.Errorf("--id: expected %s, not %q", expected, f.id)}
	}
	if f.id == "" {
		f.id = uuid.NewString()
	}
	commands, err := a.readCommands(name, f.jsonInput)
	b := batchRun{app: a, flags: f, commands: commands, fromStdin: name == "-"}
	b.done = wire.BatchCompleted{Event: "batch_execution_completed", BatchID: f.id, Total: len(commands), Results: []wire.BatchResult{}}
	if err != nil {
		if a.json {
			b.report(err)
		}
		return err
	}
	t, err := a.toRun(ctx)
	if err == nil {
		err = a.with(ctx, t, func(s *session.Session) error { return b.run(ctx, s) })
	}
	b.report(err)
	if err != nil {
		return err
	}
	if b.failed != 0 {
		return exitStatus(b.failed)
	}
	return nil
}

func (a *app) readCommands(name string, asJSON bool) ([]string, error) {
	in := io.Reader(a.in)
	if name != "-" {
		f, err := os.Open(a.abs(name))
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // read only
		in = f
	}
	if asJSON {
		return fromJSON(in, name)
	}
	var commands []string
	for r := bufio.NewReader(in); ; {
		line, err := r.ReadString('\n')
		line = strings.TrimSuffix(line, "\n")
		if s := strings.TrimSpace(line); s != "" && !strings.HasPrefix(s, "#") {
			commands = append(commands, line)
		}
		if errors.Is(err, io.EOF) {
			return commands, checkCommands(name, commands)
		}
		if err != nil {
			return nil, err
		}
	}
}

func fromJSON(in io.Reader, name string) (commands []string, err error) {
	d := json.NewDecoder(in)
	if err = d.Decode(&commands); err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the array")
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s is not a JSON array of strings: %w", name, err)
	}
	return commands, checkCommands(name, commands)
}

// checkCommands looks at all commands before the first is run.
func checkCommands(name string, commands []string) error {
	for i, c := range commands {
		if strings.ContainsRune(c, 0) {
			return fmt.Errorf("%s: command %d holds a NUL byte, which no shell can take: remove it (nothing was run)", name, i+1)
		}
	}
	return nil
}

// batchRun is one batch on its way.
type batchRun struct {
	app       *app
	flags     batchFlags
	commands  []string
	fromStdin bool // then the commands' own stdin is empty
	failed    int  // exit status of the first failure
	done      wire.BatchCompleted
	output    strings.Builder
}

func (b *batchRun) run(ctx context.Context, s *session.Session) error {
	var broken error
	for i, text := range b.commands {
		if b.failed != 0 && !b.flags.keepGoing || ctx.Err() != nil || broken != nil {
			b.done.Results = append(b.done.Results, wire.BatchResult{Command: text, Index: i, Error: wire.SkippedText, Skipped: true})
			continue
		}
		if broken = b.one(ctx, s, i, text); broken != nil {
			b.notRun(i, text, broken)
		}
	}
	if b.failed != 0 && b.flags.rollback && b.done.Successful+b.done.Failed > 0 {
		u, err := s.Rollback(context.WithoutCancel(ctx), session.Target{Batch: b.flags.id}, session.RollbackOptions{})
		if err != nil {
			broken = errors.Join(broken, fmt.Errorf("roll the batch back: %w", err))
		} else {
			b.done.RolledBack = true
			b.app.tellUndo(u, "rolled back")
		}
	}
	return broken
}

func (b *batchRun) one(ctx context.Context, s *session.Session, i int, text string) error {
	c := session.Command{Text: text, ID: uuid.NewString(), BatchID: b.flags.id, CommandIndex: i, Timeout: b.flags.timeout}
	e := b.app.newEvents(c.ID, b.flags.id, &i)
	stop, err := b.app.wire(&c, false, e)
	if err != nil {
		return err
	}
	defer stop()
	if b.fromStdin {
		c.Stdin = nil
	}
	if !b.app.json {
		b.app.say("deployx: [%d/%d] %s", i+1, len(b.commands), oneLine(text, 1000))
	}
	c.Started = e.started
	c.Done = func(r session.Result) {
		b.app.finished(e, r, "batch_command_completed")
		b.add(r, i)
	}
	_, err = s.Run(ctx, c)
	return err
}

// notRun adds a command that deployx failed to run, or to record.
func (b *batchRun) notRun(i int, text string, err error) {
	b.failed = exitFailed
	if len(b.done.Results) == i {
		b.done.Failed++
		b.done.Results = append(b.done.Results, wire.BatchResult{Command: text, Index: i, Error: err.Error(), ExitCode: exitFailed})
	}
}

func (b *batchRun) add(r session.Result, i int) {
	s := r.Snapshot
	res := wire.BatchResult{
		Command: s.Command, Index: i, Success: s.ExitCode == 0, Output: string(r.Tail), Seconds: s.Duration.Seconds(),
		ExitCode: s.ExitCode, SnapshotID: string(s.ID),
	}
	b.output.Write(r.Tail)
	if res.Success {
		b.done.Successful++
	} else {
		b.done.Failed++
		res.Error = fmt.Sprintf("exit status %d", s.ExitCode)
		if b.failed == 0 {
			b.failed = s.ExitCode
		}
	}
	b.done.Results = append(b.done.Results, res)
}

func (b *batchRun) report(broken error) {
	b.done.Success = b.done.Failed == 0 && broken == nil && b.done.Successful == b.done.Total
	b.done.Output = b.output.String()
	for _, r := range b.done.Results {
		if b.done.Error == "" {
			b.done.Error = r.Error
		}
	}
	if b.done.Error == "" && broken != nil {
		b.done.Error = broken.Error()
	}
	if b.app.json {
		done := wire.AgentBatchCompleted{BatchCompleted: b.done}
		if broken != nil {
			done.Code = string(codeOf(broken))
		}
		b.app.newEvents("", b.flags.id, nil).print(done)
		return
	}
	b.app.say("deployx: batch %s: %d done, %d failed, %d skipped", b.flags.id, b.done.Successful, b.done.Failed,
		b.done.Total-b.done.Successful-b.done.Failed)
}
