package snapshot

// A Mount is a filesystem that is mounted below a tree. It is not covered: a
// snapshot holds nothing of what is in it, and a rollback neither changes that nor
// mounts or unmounts it.
type Mount struct {
	Path   string      `json:"path"` // absolute
	Type   string      `json:"type"`
	Source string      `json:"source,omitempty"`
	Root   string      `json:"root,omitempty"` // what of the filesystem is shown; "/" is all
	Change MountChange `json:"change,omitempty"`
}

// A MountChange is what a command did to a mount.
type MountChange string

// The changes.
const (
	Mounted   MountChange = "mounted"
	Unmounted MountChange = "unmounted"
)
