package snapshot

import "testing"

func TestWho(t *testing.T) {
	for h, want := range map[*Holder]string{
		{PID: 7, Name: "(sd-pam)"}: "(sd-pam) (pid 7)", {Name: "the kernel"}: "the kernel", {PID: 7, Name: "a\x1b[2Jb"}: `"a\x1b[2Jb" (pid 7)`,
	} {
		if got := h.Who(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
