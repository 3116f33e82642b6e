package snapshot

import "strings"

// Check is one capability that a driver tried on this host and tree.
type Check struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	Needed bool   `json:"needed"` // without it the driver cannot be used
	Detail string `json:"detail,omitempty"`
}

// Usable tells whether everything that is needed is there, and if not, what
// was tried.
func Usable(checks []Check) (ok bool, why string) {
	var missing []string
	for _, c := range checks {
		if c.Needed && !c.OK {
			missing = append(missing, c.Name+": "+c.Detail)
		}
	}
	return len(missing) == 0, strings.Join(missing, "; ")
}
