package agent

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"deployx/session"
	"deployx/snapshot"
)

// host has fake sessions: each keeps a real record, and knows a few words
// instead of a shell.
type host struct {
	dir  string
	lean bool // keeps no record

	mu    sync.Mutex
	trees map[string]*fake
	runs  map[string]int // of each command text
}

func newHost(t testing.TB) *host {
	return &host{dir: t.TempDir(), trees: map[string]*fake{}, runs: map[string]int{}}
}

func (h *host) open(_ context.Context, path string) (Session, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if strings.HasPrefix(path, "/missing") {
		return nil, fail(snapshot.CodeNotFound, "there is no "+path, "")
	}
	if f := h.trees[path]; f != nil {
		return f, nil
	}
	f := &fake{host: h, tree: snapshot.Tree{Path: path, Driver: "fake", Store: filepath.Join(h.dir, "trees", snapshot.Name(path))}, reached: make(chan string, 1000)}
	h.trees[path] = f
	return f, nil
}

func (h *host) at(path string) *fake {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.trees[path]
}

func (h *host) count(text string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.runs[text]
}

// fake is a session.
type fake struct {
	host    *host
	tree    snapshot.Tree
	reached chan string // texts of commands that began
	got     session.Command

	mu   sync.Mutex
	busy bool
}

func (f *fake) Tree() snapshot.Tree { return f.tree }
func (f *fake) Close() error        { return nil }

func (f *fake) Record() (*snapshot.Record, error) {
	return snapshot.OpenRecord(filepath.Join(f.tree.Store, "record"))
}

// alone fails if the agent calls two methods at a time that it must not.
func (f *fake) alone() func() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy {
		panic("two requests run in one tree")
	}
	f.busy = true
	return func() { f.mu.Lock(); f.busy = false; f.mu.Unlock() }
}

// Run knows: echo TEXT, out N BYTE (N times), err TEXT, exit N, wait (for an
// interrupt), cat (its input), then anything else, which does nothing.
func (f *fake) Run(ctx context.Context, c session.Command) (session.Result, error) {
	defer f.alone()()
	if err := ctx.Err(); err != nil {
		return session.Result{}, err
	}
	p := snapshot.Snapshot{
		ID: snapshot.NewID(), Kind: snapshot.KindCommand, Command: c.Text, CommandID: c.ID, BatchID: c.BatchID, CommandIndex: c.CommandIndex,
		Metadata: c.Metadata, NoSnapshot: c.NoSnapshot, Dir: f.tree.Path, Started: time.Now(),
	}
	rec, err := f.begin(&p)
	if err != nil {
		return session.Result{}, err
	}
	if err := c.Started(p); err != nil {
		return session.Result{}, err
	}
	f.host.mu.Lock()
	f.host.runs[c.Text]++
	f.got = c
	f.host.mu.Unlock()
	f.reached <- c.Text
	r := session.Result{Dir: f.tree.Path, Tail: f.play(ctx, c, &p)}
	r.Snapshot = p
	if rec != nil {
		h := rec.Head()
		h.Snapshot, h.Redo = p.ID, nil
		if err := rec.Commit(h, nil, p); err != nil {
			return r, err
		}
	}
	c.Done(r)
	return r, nil
}

func (f *fake) begin(p *snapshot.Snapshot) (*snapshot.Record, error) {
	if f.host.lean {
		return nil, nil
	}
	rec, err := f.Record()
	if err != nil {
		return nil, err
	}
	p.Parent = rec.Head().Snapshot
	p.Changes.Added, p.Changes.Modified = 1, strings.Count(p.Command, "modify")
	if err := rec.Commit(rec.Head(), nil); err != nil { // makes the directory
		return nil, err
	}
	return rec, rec.Begin(*p, false)
}

func (f *fake) play(ctx context.Context, c session.Command, p *snapshot.Snapshot) []byte {
	word, rest, _ := strings.Cut(c.Text, " ")
	var out string
	switch word {
	case "echo":
		out = rest + "\n"
	case "err":
		_, _ = io.WriteString(c.Stderr, rest)
		return []byte(rest)
	case "out":
		var n int
		var b string
		_, _ = fmt.Sscanf(rest, "%d %q", &n, &b)
		block := []byte(strings.Repeat(b, min(n, 32<<10)))
		for sent := 0; sent < n; sent += len(block) / len(b) {
			_, _ = c.Stdout.Write(block[:min(len(block), (n-sent)*len(b))])
		}
	case "exit":
		_, _ = fmt.Sscanf(rest, "%d", &p.ExitCode)
	case "wait":
		<-ctx.Done()
		p.Interrupted, p.ExitCode = true, 130
	case "cat":
		b, _ := io.ReadAll(c.Stdin)
		out = string(b)
	}
	_, _ = io.WriteString(c.Stdout, out)
	return []byte(out)
}

func (f *fake) Rollback(_ context.Context, t session.Target, o session.RollbackOptions) (u session.Undo, err error) {
	defer f.alone()()
	rec, err := f.Record()
	if err != nil {
		return u, err
	}
	id := t.ID
	if t.Batch != "" {
		if id, err = rec.FirstOfBatch(t.Batch); err != nil {
			return u, err
		}
	}
	if u.Dropped, err = rec.Above(id); err != nil {
		return u, err
	}
	if o.Drift != session.DriftDrop {
		for _, s := range u.Dropped {
			if strings.Contains(s.Command, "drift") {
				return u, &snapshot.Error{Code: snapshot.CodeDriftConflict, Msg: "others changed it", Paths: []string{"x"}}
			}
		}
	}
	u.Dir, u.Verified, u.DryRun = f.tree.Path, true, o.DryRun
	if o.DryRun {
		return u, nil
	}
	h := rec.Head()
	h.Redo = append(h.Redo, snapshot.Frame{Snapshot: h.Snapshot})
	h.Snapshot = u.Dropped[len(u.Dropped)-1].Parent
	return u, rec.Move(h)
}

func (f *fake) Redo(_ context.Context, n int, _ session.RollbackOptions) (u session.Undo, err error) {
	defer f.alone()()
	rec, err := f.Record()
	if err != nil {
		return u, err
	}
	h := rec.Head()
	if n > len(h.Redo) {
		return u, badRequest("%d rollbacks can be undone, not %d", len(h.Redo), n)
	}
	h.Snapshot, h.Redo = h.Redo[len(h.Redo)-n].Snapshot, h.Redo[:len(h.Redo)-n]
	return u, rec.Move(h)
}

func (f *fake) Changes(_ context.Context, _ snapshot.ID, visit func(snapshot.Change) error) error {
	return visit(snapshot.Change{Path: "file", Kind: snapshot.ChangeAdded, Type: snapshot.TypeFile})
}

func (f *fake) Size(context.Context, snapshot.Snapshot) (int64, error) { return 4096, nil }

func (f *fake) Patch(_ context.Context, _ snapshot.ID, w io.Writer) error {
	_, err := io.WriteString(w, "+++ b/file\n")
	return err
}

// retaining is a session that lets snapshots go.
type retaining struct {
	*fake
	asked  chan time.Duration
	forgot chan string
}

func (r retaining) Forget(_ context.Context, id snapshot.ID, older bool) (int, error) {
	r.forgot <- fmt.Sprint(id, older)
	return 1, nil
}

func (r retaining) Expire(_ context.Context, olderThan time.Duration) (int, error) {
	r.asked <- olderThan
	return 3, nil
}
