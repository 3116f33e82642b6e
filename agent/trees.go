package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"deployx/snapshot"
)

// maxQueue is how many requests wait for one tree.
const maxQueue = 256

// job is a request that waits for its tree's turn.
type job struct {
	id    string // of the command or batch, "" for what cannot be interrupted; guarded by its tree's mu
	do    func(ctx context.Context, s Session)
	drop  func(err error) // instead of do: it was interrupted, or the tree cannot be opened
	input *input          // of the command that runs, or nil

	of     *tree
	ctx    context.Context
	cancel context.CancelFunc
}

// over is for when the result is about to be told: from there on it would be a
// lie that the job was interrupted, though the tree is made ready for the next.
func (j *job) over() {
	j.of.mu.Lock()
	defer j.of.mu.Unlock()
	j.id = ""
}

// tree is one tree: its session, opened when first needed, and its queue.
// Requests run one after another.
type tree struct {
	path string
	open Opener

	ctx  context.Context // ends when running commands are to be interrupted
	wg   *sync.WaitGroup
	wake chan struct{} // holds a token when there may be something to do

	mu       sync.Mutex
	session  Session
	queue    []*job
	reserved int
	running  *job
	closed   bool
	started  bool

	cleaning sync.Mutex // held while old snapshots are let go
}

// reserve keeps a place in the queue for a job; give it back with release or
// use it with put.
func (t *tree) reserve() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return errStopping
	}
	if len(t.queue)+t.reserved >= maxQueue {
		return fail(codeBusyQueue, fmt.Sprintf("%d requests wait for %q already", maxQueue, t.path), "send it again when some are done")
	}
	t.reserved++
	return nil
}

func (t *tree) release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reserved--
}

// put uses a reserved place.
func (t *tree) put(j *job) {
	j.of = t
	j.ctx, j.cancel = context.WithCancel(t.ctx)
	t.mu.Lock()
	t.reserved--
	closed := t.closed
	if !closed {
		t.queue = append(t.queue, j)
		if !t.started {
			t.started = true
			t.wg.Go(t.work)
		}
	}
	t.mu.Unlock()
	if closed {
		j.drop(errStopping)
		return
	}
	t.poke()
}

func (t *tree) poke() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// work runs the jobs until the tree is closed and its queue empty.
func (t *tree) work() {
	for {
		j, last := t.take()
		switch {
		case j != nil:
			t.run(j)
		case last:
			return
		default:
			<-t.wake
		}
	}
}

func (t *tree) take() (j *job, last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.queue) == 0 {
		return nil, t.closed
	}
	j = t.queue[0]
	t.queue = t.queue[1:]
	t.running = j
	return j, false
}

func (t *tree) run(j *job) {
	defer func() {
		j.cancel()
		t.mu.Lock()
		t.running = nil
		t.mu.Unlock()
	}()
	s, err := t.opened(j.ctx)
	if err != nil {
		j.drop(err)
		return
	}
	j.do(j.ctx, s)
}

// opened gives the session, opening it if need be.
func (t *tree) opened(ctx context.Context) (Session, error) {
	t.mu.Lock()
	s := t.session
	t.mu.Unlock()
	if s != nil {
		return s, nil
	}
	s, err := t.open(ctx, t.path)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.session != nil { // another was faster
		return t.session, s.Close()
	}
	t.session = s
	return s, nil
}

// current is the session if it is open.
func (t *tree) current() Session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.session
}

// interrupt stops the job of that id, or with "" the one that runs, and says
// whether there was one.
func (t *tree) interrupt(id string) bool {
	t.mu.Lock()
	if r := t.running; r != nil && r.id != "" && (id == "" || r.id == id) {
		t.mu.Unlock()
		r.cancel()
		return true
	}
	var found *job
	for i, j := range t.queue {
		if id != "" && j.id == id {
			found = j
			t.queue = append(t.queue[:i:i], t.queue[i+1:]...)
			break
		}
	}
	t.mu.Unlock()
	if found != nil {
		found.drop(errInterrupted)
	}
	return found != nil
}

// inputOf finds where the input of a running command goes.
func (t *tree) inputOf(id string) (in *input, running bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running == nil || t.running.id != id {
		return nil, false
	}
	return t.running.input, true
}

// stop refuses new jobs and drops those that wait.
func (t *tree) stop() {
	t.mu.Lock()
	t.closed = true
	waiting := t.queue
	t.queue = nil
	t.mu.Unlock()
	for _, j := range waiting {
		j.drop(errStopping)
	}
	t.poke()
}

// busy lists the ids of what runs and waits.
func (t *tree) busy() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var ids []string
	for _, j := range append([]*job{t.running}, t.queue...) {
		if j != nil && j.id != "" {
			ids = append(ids, j.id)
		}
	}
	return ids
}

// trees are those that requests may name.
type trees struct {
	open     Opener
	ctx      context.Context
	fallback string          // what a request means that names none; "" if there is none
	allowed  map[string]bool // nil allows all

	wg sync.WaitGroup
	mu sync.Mutex
	at map[string]*tree
	no bool // closed
}

func newTrees(ctx context.Context, open Opener, own, allow []string) *trees {
	t := &trees{open: open, ctx: ctx, at: map[string]*tree{}}
	if len(own) > 0 {
		t.fallback = resolved(own[0])
	}
	if len(allow) > 0 {
		t.allowed = map[string]bool{}
		for _, p := range append(slices.Clone(own), allow...) {
			t.allowed[resolved(p)] = true
		}
	}
	for _, p := range own {
		t.make(resolved(p))
	}
	return t
}

// resolved follows symbolic links as far as the path exists, so that one tree
// has one queue whatever it is called.
func resolved(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return filepath.Clean(path)
}

// pick finds the tree that a request means.
func (t *trees) pick(path string) (*tree, error) {
	if path == "" {
		path = t.fallback
	}
	if path == "" {
		return nil, badRequest("tree: expected a path, for this agent has no default tree")
	}
	if !strings.HasPrefix(path, "/") {
		return nil, badRequest("tree: expected an absolute path")
	}
	path = resolved(path)
	if !t.allows(path) {
		return nil, fail(codeUnauthorized, fmt.Sprintf("the agent was not allowed the tree %q", path), "start it with --allow-tree")
	}
	if tr := t.make(path); tr != nil {
		return tr, nil
	}
	return nil, fail(codeBusyQueue, fmt.Sprintf("the agent knows %d trees already, or is being stopped", maxTrees), "restart it")
}

// allows tells whether requests may name the tree.
func (t *trees) allows(path string) bool { return t.allowed == nil || t.allowed[path] }

// maxTrees bounds what a backend can make the agent remember.
const maxTrees = 4000

func (t *trees) make(path string) *tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tr := t.at[path]; tr != nil || t.no || len(t.at) >= maxTrees {
		return tr
	}
	tr := &tree{path: path, open: t.open, ctx: t.ctx, wg: &t.wg, wake: make(chan struct{}, 1)}
	t.at[path] = tr
	return tr
}

// serves tells whether a tree has a session.
func (t *trees) serves(path string) bool {
	t.mu.Lock()
	tr := t.at[path]
	t.mu.Unlock()
	return tr != nil && tr.current() != nil
}

// all lists the trees in the order of their paths.
func (t *trees) all() []*tree {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []*tree
	for _, p := range slices.Sorted(maps.Keys(t.at)) {
		list = append(list, t.at[p])
	}
	return list
}

// holding finds the tree whose record knows a snapshot, the default one first.
func (t *trees) holding(path string, knows func(*snapshot.Record) (bool, error), missing error) (*tree, error) {
	if path != "" {
		return t.pick(path)
	}
	list := t.all()
	if tr, err := t.pick(""); err == nil {
		list = append([]*tree{tr}, list...)
	}
	for _, tr := range list {
		s, err := tr.opened(t.ctx)
		if err != nil {
			continue // a tree that cannot be opened holds nothing that can be used
		}
		rec, err := s.Record()
		if err == nil {
			var ok bool
			if ok, err = knows(rec); ok {
				return tr, nil
			}
		}
		if snapshot.CodeOf(err) == snapshot.CodeExpired {
			missing = err // or it is of another tree: a record only knows that it has nothing so old
			continue
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, missing
}

// stop refuses new jobs everywhere and drops what waits.
func (t *trees) stop() {
	t.mu.Lock()
	t.no = true
	t.mu.Unlock()
	for _, tr := range t.all() {
		tr.stop()
	}
}

// close closes the sessions. stop came before, and wg has been waited for.
func (t *trees) close() error {
	var errs []error
	for _, tr := range t.all() {
		if s := tr.current(); s != nil {
			errs = append(errs, s.Close())
		}
	}
	return errors.Join(errs...)
}
