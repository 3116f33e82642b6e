package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/overlay"
	"deployx/snapshot"
)

// What a child of TestKilled is told, and what it notes of each operation:
// a line before it, and one after.
const (
	envKiller = "DEPLOYX_TEST_KILLER" // dir, driver, seed
	killerOps = 60
	driftName = "drift" // what the names of links that others make begin with
)

type note struct {
	N       int
	Op      string      // run, drift, rollback, redo, gc, commit, forget, restore, reopen, hold, let go
	Changes []change    `json:",omitempty"` // of run
	Name    string      `json:",omitempty"` // of drift: a link that others make
	To      snapshot.ID `json:",omitempty"` // of rollback and redo: the head it leads to, if not to base
	Keep    bool        `json:",omitempty"` // of rollback and redo: what others wrote stays, as an entry above that
	Done    bool        `json:",omitempty"`
	Head    snapshot.ID `json:",omitempty"` // when done
	Left    snapshot.ID `json:",omitempty"` // when done: what redo goes to
	Parent  snapshot.ID `json:",omitempty"` // of run, rollback and redo when done: the entry that the head stands on
	Err     string      `json:",omitempty"`
	At      int         `json:",omitempty"` // the requests that the disk had been sent, see TestEveryCut
}

type killerChild struct {
	*rig
	rnd   *rand.Rand
	token string
	log   io.Writer
	n     int
	ran   snapshot.Snapshot // the newest entry that a command left
	undo  Undo              // what the newest rollback or redo did
	cut   meddler
	// holders is what those who stand in the tree have in their environment.
	holders string
}

// holdersOf is the environment of those who stand in a tree.
func holdersOf(dir string) string { return "DEPLOYX_TEST_HOLDER=" + dir }

// A meddler is what may happen while operations are done.
type meddler interface {
	begin(op string)
	end()
	steer(n, roll int) int // what the nth operation is
	happened() bool        // whether an operation may fail now
	at() int
	io.Writer // hears what commands print
}

// playKiller works on the tree until it is killed, or has done enough.
func playKiller(t *testing.T) {
	var dir, driver string
	var seed uint64
	if _, err := fmt.Sscan(os.Getenv(envKiller), &dir, &driver, &seed); err != nil {
		t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	c := &killerChild{rig: killRig(t, dir, driver), rnd: rand.New(rand.NewPCG(seed, 0)), token: fmt.Sprint("s", seed), log: log, cut: (*cut)(nil), holders: holdersOf(dir)}
	ready := os.NewFile(3, "ready")
	if _, err := ready.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	for c.n = range killerOps {
		c.one()
	}
}

// one does one random operation between two notes.
func (c *killerChild) one() {
	n, do := c.choose()
	n.N = c.n
	n.At = c.cut.at()
	c.note(n)
	c.cut.begin(n.Op)
	err := do()
	c.cut.end()
	if err != nil {
		n.Err = err.Error()
		c.note(n)
		if !c.cut.happened() {
			c.Fatal(err)
		}
		return
	}
	n.At = c.cut.at()
	h := c.rec.Head()
	if n.Done, n.Head = true, h.Snapshot; len(h.Redo) > 0 {
		n.Left = h.Redo[len(h.Redo)-1].Snapshot
	}
	switch {
	case n.Op == "run":
		n.Parent = c.ran.Parent
	case n.Keep && c.undo.KeptAs != nil:
		n.Parent = c.undo.KeptAs.Parent
	}
	c.note(n)
}

func (c *killerChild) note(n note) {
	b, err := json.Marshal(n)
	if err == nil {
		_, err = c.log.Write(append(b, '\n'))
	}
	if err != nil {
		c.Fatal(err)
	}
}

func (c *killerChild) choose() (note, func() error) {
	roll := c.cut.steer(c.n, c.rnd.IntN(26))
	switch roll {
	case 0, 1, 2, 3, 4:
		if n, do := c.chooseRollback(); do != nil {
			return n, do
		}
	case 5, 6:
		if h := c.rec.Head(); len(h.Redo) > 0 && !c.drifted(h) && !c.collides() {
			return note{Op: "redo", To: h.Redo[len(h.Redo)-1].Snapshot, Keep: true}, func() (err error) {
				c.undo, err = c.Redo(context.Background(), 1, RollbackOptions{})
				return err
			}
		}
	case 7:
		return note{Op: "gc"}, func() error {
			_, err := c.Expire(context.Background(), 0)
			return err
		}
	case 8:
		return note{Op: "reopen"}, func() error {
			return errors.Join(c.Session.Close(), c.open())
		}
	case 9, 10, 13, 14:
		if c.rec.Head().Open == "" { // a plain directory: it would become base
			break
		}
		name := fmt.Sprint(driftName, c.rnd.IntN(4))
		return note{Op: "drift", Name: name}, func() error {
			err := os.Symlink("x", filepath.Join(c.tree, name))
			if errors.Is(err, os.ErrExist) {
				return nil
			}
			return err
		}
	case rollHold:
		if c.rec.Head().Open == "" || c.opts.Tree.Driver != overlay.Name { // nothing would be held
			break
		}
		return note{Op: "hold"}, c.hold
	case rollLetGo:
		if len(withEnv(c.holders)) == 0 {
			break
		}
		return note{Op: "let go"}, func() error { return endAll(c.holders) }
	}
	if n, do := c.chooseCommit(roll); do != nil {
		return n, do
	}
	n := note{Op: "run"}
	text := []string{"cd " + c.tree}
	for i := range c.rnd.IntN(5) {
		ch := randomChange(c.rnd, fmt.Sprintf("%s.%d.%d", c.token, c.n, i))
		n.Changes = append(n.Changes, ch)
		text = append(text, ch.text())
		if c.cut != nil && c.rnd.IntN(3) == 0 { // else a power cut takes the command with its note
			text = append(text, "sync -f .")
		}
		text = append(text, "echo changed")
	}
	return n, func() error {
		r, err := c.Run(context.Background(), Command{Text: strings.Join(text, "\n"), Stdout: c.cut})
		if c.ran = r.Snapshot; err == nil && c.ran.ExitCode != 0 {
			err = fmt.Errorf("exit status %d: %s", c.ran.ExitCode, r.Tail)
		}
		return err
	}
}

// Some of the rolls of choose.
const (
	rollHold    = 11
	rollLetGo   = 12
	rollCommit  = 20
	rollThrough = 21
	rollRestore = 23
	rollForget  = 24
)

// chooseCommit picks what makes base another one, or shows it as after a boot; nil
// if it is another's turn.
func (c *killerChild) chooseCommit(roll int) (note, func() error) {
	ctx := context.Background()
	held := len(withEnv(c.holders)) > 0
	if (roll == rollThrough || roll == rollThrough+1) && (held || c.rec.Head().Stands != nil) { // a part would be refused
		roll = rollCommit
	}
	switch roll {
	case rollCommit:
		return note{Op: "commit"}, func() error { return commitAll(c.rig) }
	case rollThrough, rollThrough + 1:
		list := historyOf(c.TB.(*testing.T), c.rig)
		if len(list) == 0 {
			break
		}
		o := CommitOptions{Through: list[c.rnd.IntN(len(list))].ID}
		return note{Op: "commit"}, func() error {
			_, err := c.Commit(ctx, o)
			return err
		}
	case rollRestore:
		if held { // there was no boot
			break
		}
		return note{Op: "restore"}, func() error {
			if err := c.Session.Close(); err != nil {
				return err
			}
			unmountAll(c.TB.(*testing.T), c.tree)
			if err := c.open(); err != nil {
				return err
			}
			_, err := c.Restore(ctx)
			return errors.Join(err, c.FinishCommit(ctx))
		}
	case rollForget:
		if held { // refused
			break
		}
		return note{Op: "forget"}, func() error {
			if err := forget(c.rig); err != nil {
				return err
			}
			err := errors.Join(c.Session.Close(), os.MkdirAll(c.opts.Tree.Store, 0o755))
			if err == nil {
				err = c.open()
			}
			return err
		}
	}
	return note{}, nil
}

// chooseRollback picks an applied command; nil if there is none.
func (c *killerChild) chooseRollback() (note, func() error) {
	list := historyOf(c.TB.(*testing.T), c.rig)
	if len(list) == 0 {
		return note{}, nil
	}
	target := list[min(c.rnd.IntN(len(list)), c.rnd.IntN(len(list)))]
	dropped, err := c.rec.Above(target.ID) // shared layers go together
	if err != nil {
		c.Fatal(err)
	}
	n, o := note{Op: "rollback", To: dropped[len(dropped)-1].Parent}, RollbackOptions{Drift: DriftDrop}
	if target.Kind == snapshot.KindCommand && c.rnd.IntN(2) == 0 { // what is named is dropped
		n.Keep, o.Drift = true, DriftKeep
	}
	return n, func() (err error) {
		c.undo, err = c.Rollback(context.Background(), Target{ID: target.ID}, o)
		return err
	}
}

// hold starts a process that stands in the tree, and outlives this one.
func (c *killerChild) hold() error {
	cmd := exec.Command("sleep", "infinity")
	cmd.Dir, cmd.Env = c.tree, append(os.Environ(), c.holders)
	err := cmd.Start()
	if err == nil {
		go cmd.Wait() //nolint:errcheck // it is killed
	}
	return err
}

// endAll ends the processes with an assignment in their environment, and waits until they have gone.
func endAll(env string) error {
	for {
		pids := withEnv(env)
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// drifted tells whether others have written since the last command.
func (c *killerChild) drifted(h snapshot.Head) bool {
	d, err := c.openDrift(context.Background(), h)
	if err != nil {
		c.Fatal(err)
	}
	return d != nil
}

// collides tells whether a redo would be refused: others wrote a name before a
// rollback, and again after it.
func (c *killerChild) collides() bool {
	_, err := c.Redo(context.Background(), 1, RollbackOptions{DryRun: true})
	var refused *snapshot.Error
	switch {
	case errors.As(err, &refused) && refused.Code == snapshot.CodeDriftConflict:
		return true
	case err != nil && len(c.rec.Head().Redo) == 0: // a commit that waits for holders has sealed what others wrote
		return true
	case err != nil:
		c.Fatal(err)
	}
	return false
}
