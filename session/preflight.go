package session

import (
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// MinFree is how much of the filesystem that takes the layers must be free for
// a command to run, of its inodes too. The zero value asks for nothing.
type MinFree struct {
	Percent float64 // of what is there for everybody, as df(1) counts
	Bytes   int64
}

// preflight refuses a command where little is left: it would fail half-way, and
// what others write to the tree meanwhile too. A rollback is not asked.
func (s *Session) preflight() error {
	need := s.o.MinFree
	if need == (MinFree{}) {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(s.o.Tree.Store, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: s.o.Tree.Store, Err: err}
	}
	free := int64(st.Bavail) * st.Bsize
	share := percent(st.Bavail, st.Blocks-st.Bfree+st.Bavail)
	if share < need.Percent || free < need.Bytes {
		return s.tooFull(fmt.Sprintf("only %.1f %% of the filesystem of %s is free (%d MiB)", share, s.o.Tree.Store, free>>20))
	}
	if inodes := percent(st.Ffree, st.Files); st.Files > 0 && inodes < need.Percent {
		return s.tooFull(fmt.Sprintf("only %.1f %% of the inodes of the filesystem of %s are free (%d)", inodes, s.o.Tree.Store, st.Ffree))
	}
	return nil
}

func percent(part, of uint64) float64 {
	if of == 0 {
		return 100
	}
	return 100 * float64(part) / float64(of)
}

func (s *Session) tooFull(what string) error {
	need := fmt.Sprintf("%g %%", s.o.MinFree.Percent)
	if s.o.MinFree.Bytes > 0 {
		need = fmt.Sprintf("%d MiB", s.o.MinFree.Bytes>>20)
	}
	return &snapshot.Error{
		Code: snapshot.CodeNoSpace, Msg: what + ", less than the " + need + " that a command needs; it was not run",
		Hint: "make room: deployx rollback goes on a full disk (docs/operations.md tells what it may need), and deployx gc --undone frees what was rolled back; deployx gc --keep-for 1h lets older snapshots go; --min-free 0 runs it all the same",
	}
}
