package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"deployx/fallback"
	"deployx/internal/testns"
	"deployx/overlay"
	"deployx/snapshot"
)

// How often a child is killed, on both drivers together, and at the latest
// when after it is ready.
const (
	killerRounds = 500
	killerSoak   = 10000
	killerDelay  = 60 * time.Millisecond
)

// TestKilled kills a process that works on a tree at a random moment, again and
// again on the same tree. Whoever opens the session next must find the tree as
// the record says: at one of the two ends of the operation, or with some of what
// the command had done, recorded as unfinished. The one after that must find
// nothing to do.
func TestKilled(t *testing.T) {
	if os.Getenv(envKiller) != "" {
		playKiller(t)
		return
	}
	rounds := killerRounds
	if os.Getenv("DEPLOYX_SOAK") != "" {
		rounds = killerSoak
	}
	if testing.Short() {
		rounds = 50
	}
	for _, driver := range []string{overlay.Name, fallback.Name} {
		t.Run(driver, func(t *testing.T) {
			t.Parallel()
			killMany(t, driver, rounds/2)
		})
	}
}

// killRig is a rig in a given directory, which it shares with other processes.
func killRig(t testing.TB, dir, driver string) *rig {
	t.Helper()
	testns.Need(t)
	state := filepath.Join(dir, "state")
	r := &rig{TB: t, tree: filepath.Join(dir, "srv", "app")}
	r.opts = Options{
		State:      snapshot.NewState(state),
		Tree:       snapshot.Tree{Path: r.tree, Driver: driver, Store: filepath.Join(state, "trees", "app")},
		OpenDriver: openDriver,
	}
	for _, d := range []string{r.tree, r.opts.Tree.Store} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.reopen()
	return r
}

// killer is the model: the tree as it was at each entry of the record.
type killer struct {
	testing.TB
	dir, driver string
	at          map[snapshot.ID]files
	head        snapshot.ID
	now         files    // at head, and what others have written since
	loose       []string // what others have written since the last sync
	found       map[string]int
	powerCut    bool
}

func killMany(t *testing.T, driver string, rounds int) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	k := &killer{TB: t, dir: testns.NewImage(t, testns.ImageOptions{Size: 256 << 20}).Dir, driver: driver, at: map[snapshot.ID]files{"": {}}, now: files{}, found: map[string]int{}}
	defer k.leave()
	before := ""
	missing := func() (ops []string) {
		for _, what := range []string{"run", "rollback", "commit", "unfinished"} {
			if k.found[what] == 0 {
				ops = append(ops, what)
			}
		}
		return ops
	}
	for round := 0; round < rounds || round < 3*rounds && len(missing()) > 0; round++ {
		delay := time.Duration(rnd.Int64N(int64(killerDelay)))
		was, loose := k.head, slices.Clone(k.loose)
		k.child(seed+uint64(round), delay)
		last, ops := k.replay(filepath.Join(k.dir, "log"))
		k.check(last)
		if t.Failed() {
			t.Logf("was at %s, with %q loose; before that:\n%s", was, loose, before)
			t.Fatalf("round %d, killed after %s in:\n%s", round, delay, ops)
		}
		before = ops
	}
	t.Logf("killed in: %v", k.found)
	if ops := missing(); rounds >= 200 && len(ops) > 0 {
		t.Errorf("no kill in the middle of %q", ops)
	}
}

// leave ends who stands in the tree, and unmounts it.
func (k *killer) leave() {
	k.Helper()
	if err := endAll(holdersOf(k.dir)); err != nil {
		k.Error(err)
	}
	unmountAll(k.TB.(*testing.T), filepath.Join(k.dir, "srv", "app")) //nolint:forcetypeassert // no other comes here
}

// child starts one, kills it, and waits until nothing that it started runs.
func (k *killer) child(seed uint64, delay time.Duration) {
	k.Helper()
	from, ready, err := os.Pipe()
	if err != nil {
		k.Fatal(err)
	}
	defer from.Close() //nolint:errcheck // only read
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilled$", "-test.count=1")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d", envKiller, k.dir, k.driver, seed))
	cmd.ExtraFiles = []*os.File{ready}
	var out bytes.Buffer
	out.Grow(1 << 16)
	outFile, err := os.Create(filepath.Join(k.dir, "output")) // a pipe would be held by what survives
	if err != nil {
		k.Fatal(err)
	}
	defer outFile.Close() //nolint:errcheck // a test's
	cmd.Stdout, cmd.Stderr = outFile, outFile
	if err := cmd.Start(); err != nil {
		k.Fatal(err)
	}
	ready.Close()                                         //nolint:errcheck // the child's
	if _, err := from.Read(make([]byte, 1)); err == nil { // EOF: it failed, which Wait tells
		timer := time.AfterFunc(delay, func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended
		defer timer.Stop()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL) {
		b, _ := os.ReadFile(outFile.Name()) //nolint:errcheck // a detail
		k.Fatalf("child: %v\n%s", err, b)
	}
	k.orphans()
}

// orphans waits for the shell that outlives its owner until its command ends
// (docs/shell.md).
func (k *killer) orphans() {
	k.Helper()
	mark := "DEPLOYX_TREE=" + filepath.Join(k.dir, "srv", "app")
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if len(withEnv(mark)) == 0 {
			return
		}
		if time.Now().After(end) {
			k.Fatal("a shell goes on")
		}
	}
}

// withEnv are the processes that have an assignment in their environment.
func withEnv(assignment string) (pids []int) {
	procs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return nil
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(append(b, 0), []byte(assignment+"\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// replay plays what the child has done, and returns the operation that it was
// in, if any.
func (k *killer) replay(log string) (last *note, ops string) {
	k.Helper()
	b, err := os.ReadFile(log)
	if err != nil {
		k.Fatal(err)
	}
	return k.play(k.notes(b)), string(b)
}

func (k *killer) notes(log []byte) (all []note) {
	k.Helper()
	for line := range bytes.Lines(log) {
		var n note
		if err := json.Unmarshal(line, &n); err != nil {
			k.Fatalf("%v: %s", err, line)
		}
		all = append(all, n)
	}
	return all
}

func (k *killer) play(notes []note) (last *note) {
	k.Helper()
	for _, n := range notes {
		if last = &n; n.Done {
			k.done(n)
			last = nil
		}
	}
	return last
}

// done is an operation that was reported complete.
func (k *killer) done(n note) {
	k.Helper()
	switch n.Op { // these flush nothing of what others wrote
	case "drift", "reopen", "gc", "restore", "hold", "let go":
		if n.Head != k.head && len(k.loose) == 0 {
			k.Errorf("%s moved the head from %q to %q", n.Op, k.head, n.Head)
		}
	default:
		k.loose = nil
	}
	switch n.Op {
	case "run":
		all := stages(k.now, n.Changes)
		k.keepDropped(n.Parent) // what others had written may be an entry
		k.now = all[len(all)-1]
		k.at[n.Head] = k.now
	case "drift":
		k.now = change{"link", n.Name, ""}.link(k.now)
		k.loose = append(k.loose, n.Name)
	case "rollback":
		k.keepDropped(n.Left)
		k.now = k.gone(n, n.Head, n.Parent)
	case "redo":
		k.now = k.gone(n, n.Head, n.Parent)
	case "forget":
		k.at = map[snapshot.ID]files{}
	}
	if k.now == nil {
		k.Fatalf("%s ended at %q, of which nothing is known", n.Op, n.Head)
	}
	k.head = n.Head
	k.keepDropped(n.Head) // what others had written may be an entry now
}

// gone is the tree after a rollback or redo. Where what others wrote is kept, and is not
// there anyway, it is an entry above the one that was to be gone to.
func (k *killer) gone(n note, head, parent snapshot.ID) files {
	k.Helper()
	if k.at[n.To] == nil {
		k.Fatalf("%s to %q, of which nothing is known", n.Op, n.To)
	}
	f, kept := maps.Clone(k.at[n.To]), false
	for p, v := range k.now {
		if _, there := f[p]; n.Keep && !there && strings.HasPrefix(p, driftName) {
			f[p], kept = v, true
		}
	}
	if kept {
		k.found[n.Op+" that keeps"]++
	}
	if kept && parent != n.To || !kept && head != n.To {
		k.Errorf("%s to %q ended at %q on %q; something of others to keep: %t", n.Op, n.To, head, parent, kept)
	}
	return f
}

func (c change) link(f files) files {
	g := files{c.Path: "-> x"}
	for p, v := range f {
		g[p] = v
	}
	return g
}

func (k *killer) record() *snapshot.Record {
	k.Helper()
	r, err := snapshot.OpenRecord(filepath.Join(k.dir, "state", "trees", "app", "record"))
	if err != nil {
		k.Fatal(err)
	}
	return r
}

// entry is one of the record; none for base.
func (k *killer) entry(id snapshot.ID) (e snapshot.Snapshot) {
	k.Helper()
	if id == "" {
		return e
	}
	e, err := k.record().Snapshot(id)
	if err != nil {
		k.Fatal(err)
	}
	return e
}

func (k *killer) isDriftOn(id, parent snapshot.ID) bool {
	k.Helper()
	e := k.entry(id)
	return e.Kind == snapshot.KindDrift && e.Parent == parent
}

// keepDropped gives an entry that was made of drift, which a command stands on,
// a commit leads to, or the redo of a rollback, the tree of before. One that was
// there already does not change.
func (k *killer) keepDropped(left snapshot.ID) {
	if _, ok := k.at[left]; !ok {
		k.at[left] = k.now
	}
}

// check opens the session twice.
func (k *killer) check(last *note) {
	k.Helper()
	k.open(last, true)
	k.open(nil, false)
}

func (k *killer) open(last *note, first bool) {
	k.Helper()
	r := killRig(k.TB, k.dir, k.driver)
	defer k.close(r)
	if err := r.exclusively(context.Background(), func() error { return nil }); err != nil {
		k.Fatal(err)
	}
	held := len(withEnv(holdersOf(k.dir))) > 0 // what is committed is there, but shown by the mount that they hold
	if rec := r.Recovered(); !first && (rec.Reshown || rec.Unfinished != "" || rec.Committing != "" && !held) {
		k.Errorf("the second found something to do: %+v", rec)
	}
	k.agree(last, r.rec.Head().Snapshot, readFiles(k, r.tree))
}

func (k *killer) close(r *rig) {
	k.Helper()
	if err := r.Session.Close(); err != nil {
		k.Error(err)
	}
}

// agree holds what was found against the model, and goes on from there.
func (k *killer) agree(last *note, head snapshot.ID, got files) {
	k.Helper()
	if last == nil {
		last = &note{Op: "nothing"}
	}
	k.found[last.Op]++
	switch _, ok := k.at[head]; {
	case last.Op == "forget" && head == "": // nothing is known of the tree any more
		k.must(last, k.withoutLost(k.now, got), got)
		k.at = map[snapshot.ID]files{}
	case (last.Op == "commit" || last.Op == "forget") && !ok, // what others had written is an entry
		!ok && last.Op != "run" && k.isDriftOn(head, k.head):
		k.must(last, k.withoutLost(k.now, got), got)
	case head == k.head: // nothing happened
		want := k.now
		if _, made := got[last.Name]; last.Op == "drift" && made {
			want = change{"link", last.Name, ""}.link(want)
		}
		want = k.withoutLost(want, got)
		k.must(last, want, got)
	case last.Op == "rollback" || last.Op == "redo":
		if redo := k.record().Head().Redo; last.Op == "rollback" && len(redo) > 0 {
			k.keepDropped(redo[len(redo)-1].Snapshot)
		}
		k.must(last, k.gone(*last, head, k.entry(head).Parent), got)
	case !ok && last.Op == "run":
		k.ran(last, head, got)
	default:
		k.Errorf("%s: the head is %q, and was %q", last.Op, head, k.head)
	}
	k.head, k.now = head, got
	if k.at[head] == nil {
		k.at[head] = got
	}
}

// ran checks the entry of a command that was not reported.
func (k *killer) ran(last *note, head snapshot.ID, got files) {
	k.Helper()
	e := k.entry(head)
	all := stages(k.now, last.Changes)
	switch {
	case e.Kind == snapshot.KindDrift: // it did not begin
		k.must(last, k.now, got)
		return
	case e.Unfinished:
		k.found["unfinished"]++
		if d := partOf(got, all); len(d) > 0 {
			k.Errorf("an unfinished command: neither before nor after:\n%s", strings.Join(d, "\n"))
		}
	default:
		k.must(last, all[len(all)-1], got)
	}
	k.keepDropped(e.Parent)
	if k.at[e.Parent] == nil {
		k.Errorf("the entry stands on %q, of which nothing is known", e.Parent)
	}
}

// withoutLost leaves out what others had written and a power cut took: nobody
// had said that it would last.
func (k *killer) withoutLost(want, got files) files {
	want = maps.Clone(want)
	for _, name := range k.loose {
		if _, ok := got[name]; !ok && k.powerCut {
			delete(want, name)
		}
	}
	k.loose = nil
	return want
}

func (k *killer) must(last *note, want, got files) {
	k.Helper()
	if d := unlike(want, got); len(d) > 0 {
		k.Errorf("after %s:\n%s", last.Op, strings.Join(d, "\n"))
	}
}
