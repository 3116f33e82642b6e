package overlay

import (
	"slices"
	"testing"
)

// TestAloneGone: that a file which was alone has left the index since hides none
// that has come.
func TestAloneGone(t *testing.T) {
	var a alone
	a.add("open", "gone")
	if got := a.without("open", []string{"new"}); !slices.Equal(got, []string{"new"}) {
		t.Error(got)
	}
	if got := a.without("open", []string{"gone", "new"}); !slices.Equal(got, []string{"new"}) {
		t.Error(got)
	}
	if got := a.without("other", []string{"gone"}); !slices.Equal(got, []string{"gone"}) {
		t.Error(got)
	}
}
