package session

import (
	"fmt"
	"strings"
	"testing"

	"deployx/internal/crash"
	"deployx/internal/treecmp"
)

// TestCommitLinksCut: a commit that is cut off at any point between the names of one
// file, of which the attributes alone were changed, puts them together again when it
// goes on. It comes to the names in no order.
func TestCommitLinksCut(t *testing.T) {
	n := 1
	for died := true; died; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) { died = commitCut(t, n) })
	}
	if n < 12 {
		t.Errorf("only %d points", n-2)
	}
}

// commitCut cuts a commit off at the nth of its points, if it has so many.
func commitCut(t *testing.T, n int) (died bool) {
	r := newRig(t)
	sh(t, r.tree, "mkdir d; echo a > a; ln a b; ln a d/c; echo x > x; ln x d/y; touch -d @7 a x")
	r.in("chmod 600 a; chown 7:8 x")
	want, hits := picture(t, r.tree), 0
	func() {
		defer func() { died = recover() != nil }() // stands for a kill
		defer crash.SetHook(func(at string) {
			if strings.HasPrefix(at, "overlay.commit.") {
				if hits++; hits == n {
					panic("killed")
				}
			}
		})()
		r.commit("")
	}()
	r.dropShell()
	r.reopen()
	if c := r.commit(""); !c.Plain {
		t.Errorf("%+v", c)
	}
	if d := treecmp.Diff(want, picture(t, r.tree), treecmp.Options{AnyNlink: true}); len(d) > 0 {
		t.Errorf("cut off at %d:\n%s", n, d)
	}
	return died
}
