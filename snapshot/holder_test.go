package snapshot

import "testing"

func TestHolderWho(t *testing.T) {
	for want, h := range map[string]Holder{"node (pid 7)": {PID: 7, Name: "node"}, "mount": {Name: "mount"}} {
		if got := h.Who(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
