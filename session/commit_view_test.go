package session

import (
	"context"
	"fmt"
	"testing"
	"time"
)

// TestCommitUnderReaders takes pictures of the whole tree all the while that it
// is committed, in parts and with what was moved: every one must be the same, but
// for the link counts.
func TestCommitUnderReaders(t *testing.T) {
	r := newRig(t)
	for i := range 3 {
		for _, c := range []string{
			fmt.Sprintf("mkdir -p t%d/{a,b}/{1,2,3}; for f in t%d/*/*; do for n in 1 2 3 4 5; do echo $n > $f/$n; done; done", i, i),
			fmt.Sprintf("mv t%d/a t%d/moved; rm -r t%d/b/1; chmod 600 t%d/b/2/*; echo more >> t%d/b/3/1", i, i, i, i, i),
		} {
			if res, out := r.run("cd " + r.tree + "; " + c); res.Snapshot.ExitCode != 0 {
				t.Fatal(out)
			}
		}
	}
	want := picture(t, r.tree)
	looks, done := underReaders(t, r.tree)
	h := historyOf(t, r)
	for i := len(h) - 1; i >= 1; i -= 2 {
		r.commit(h[i].ID)
	}
	seen := looks()
	for looks() < seen+2 && !t.Failed() {
		time.Sleep(time.Millisecond) //nolint:forbidigo // two looks that began after the last part
	}
	c, err := r.Commit(context.Background(), CommitOptions{})
	done()
	if err != nil {
		t.Fatal(err)
	}
	if c = r.commit(""); c.Remaining > 0 || !c.Plain {
		t.Errorf("%+v", c)
	}
	sameTree(t, "at the end", want, r.tree)
	if looks() < 4 {
		t.Errorf("only %d looks", looks())
	}
}
