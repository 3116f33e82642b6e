package snapshot

import (
	"encoding/json"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// ChangeKind says what happened to one path.
type ChangeKind string

// The kinds of change. A path that was removed and made again as another type
// is ChangeType; one whose bytes are the same but whose mode, owner, times or
// extended attributes are not is ChangeMetadata.
const (
	ChangeAdded    ChangeKind = "added"
	ChangeModified ChangeKind = "modified"
	ChangeDeleted  ChangeKind = "deleted"
	ChangeType     ChangeKind = "type"
	ChangeMetadata ChangeKind = "metadata"
	ChangeRenamed  ChangeKind = "renamed" // directories only; From is the old path
)

// Change is what happened to one path between two states of a tree. Mode,
// owner and size are those after the change, or before it for a deletion.
type Change struct {
	Path string     // below the tree, no leading slash; "." is the tree's root
	From string     // the old path of a renamed directory
	Kind ChangeKind // what happened
	Type FileType
	Was  FileType // the type before, where that changed
	Mode uint32   // permission bits with setuid, setgid and sticky (07777)
	UID  uint32
	GID  uint32
	Size int64
	// SplitLink: a regular file that was one with other names, and was changed by the
	// driver's doing without them: they keep what it was (docs/design.md, "Hard links").
	// It is false where the driver cannot tell.
	SplitLink bool
}

// FileType is a letter as in find(1) -type.
type FileType string

// The file types.
const (
	TypeFile    FileType = "f"
	TypeDir     FileType = "d"
	TypeSymlink FileType = "l"
	TypeFifo    FileType = "p"
	TypeSocket  FileType = "s"
	TypeChar    FileType = "c"
	TypeBlock   FileType = "b"
)

// TypeOf is the type of a file with the given st_mode (inode(7)).
func TypeOf(mode uint32) FileType {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return TypeDir
	case unix.S_IFLNK:
		return TypeSymlink
	case unix.S_IFIFO:
		return TypeFifo
	case unix.S_IFSOCK:
		return TypeSocket
	case unix.S_IFCHR:
		return TypeChar
	case unix.S_IFBLK:
		return TypeBlock
	}
	return TypeFile
}

type changeJSON struct {
	Path    string     `json:"path"`
	PathB64 []byte     `json:"path_base64,omitempty"`
	From    string     `json:"from,omitempty"`
	FromB64 []byte     `json:"from_base64,omitempty"`
	Kind    ChangeKind `json:"change"`
	Type    FileType   `json:"type"`
	Was     FileType   `json:"was,omitempty"`
	Mode    uint32     `json:"mode"`
	UID     uint32     `json:"uid"`
	GID     uint32     `json:"gid"`
	Size    int64      `json:"size"`
	Split   bool       `json:"split_link,omitempty"`
}

// MarshalJSON writes the object that `deployx diff --json` documents. A path
// that is not UTF-8 stands in path with its bad bytes replaced, and exactly in
// path_base64.
func (c Change) MarshalJSON() ([]byte, error) {
	return json.Marshal(changeJSON{
		Path: c.Path, PathB64: odd(c.Path), From: c.From, FromB64: odd(c.From),
		Kind: c.Kind, Type: c.Type, Was: c.Was, Mode: c.Mode, UID: c.UID, GID: c.GID, Size: c.Size, Split: c.SplitLink,
	})
}

func odd(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// Counts is a summary of changes: a renamed directory and a change of type or
// metadata count as modified.
type Counts struct {
	Added    int `json:"added"`
	Modified int `json:"modified"`
	Deleted  int `json:"deleted"`
}

// Add counts one change.
func (n *Counts) Add(c Change) {
	switch c.Kind {
	case ChangeAdded:
		n.Added++
	case ChangeDeleted:
		n.Deleted++
	default:
		n.Modified++
	}
}

// Total is the number of changed paths.
func (n Counts) Total() int { return n.Added + n.Modified + n.Deleted }
