package overlay

import (
	"errors"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"deployx/snapshot"
)

// Where overlayfs and captures keep the flags that forbid changes: a layer's own files
// do not have them. overlayfs looks at its attribute in the upper only
// (ovl_check_protattr, 5.15), so a layer that is sealed has lost them; what was copied
// out of a layer that goes on taking writes says which one that was.
const (
	upperFlags  = "protattr"
	copiedFlags = "deployx.flags"
)

var forbidLetters = map[rune]int{'i': flagImmutable, 'a': flagAppend}

func forbidOf(letters string) (flags int) {
	for _, l := range letters {
		flags |= forbidLetters[l]
	}
	return flags
}

// shownFlags are the inode flags that the tree shows of a file or directory while open
// takes writes. live says that the entry is in open itself.
func shownFlags(e *entry, open snapshot.LayerID, live bool) (int, error) {
	if kind := e.st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return 0, nil
	}
	flags, err := readFlags(e.dressed())
	if err != nil {
		return 0, err
	}
	name := copiedFlags
	if live {
		name = upperFlags
	}
	v, err := xattr(e.dressed(), private+name)
	if v == nil || err != nil {
		return flags, err
	}
	letters := string(v)
	if !live {
		of, l, _ := strings.Cut(letters, " ")
		if letters = l; of != string(open) {
			return flags, nil
		}
	}
	return flags | forbidOf(letters), nil
}

// readFlags reads the flags that can be set of what f stands for (O_PATH is enough). A
// filesystem without flags has none.
func readFlags(f *os.File) (int, error) {
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if errors.Is(err, unix.EBADF) { // O_PATH
		r, err := openAt(unix.AT_FDCWD, fdName(f), unix.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return 0, err
		}
		defer r.Close() //nolint:errcheck // read only
		return readFlags(r)
	}
	if err != nil {
		return 0, nil //nolint:nilerr // see above
	}
	return flags & flagsImposed, nil
}

// giveFlags gives an open file those of the flags that are in mask.
func giveFlags(f *os.File, flags, mask int) error {
	now, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return nil //nolint:nilerr // a filesystem without flags
	}
	if want := now&^mask | flags&mask; want != now {
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, want); err != nil {
			return &fs.PathError{Op: "set flags", Path: f.Name(), Err: err}
		}
	}
	return nil
}

// sameShownFlags tells whether the flags that are shown of a are those that the layers
// have of b. live says that a is in open itself.
func sameShownFlags(a, b *entry, open snapshot.LayerID, live bool) (bool, error) {
	x, err := shownFlags(a, open, live)
	if err != nil {
		return false, err
	}
	y, err := shownFlags(b, open, false)
	return x == y, err
}

// keepFlags notes in a copy of e which flags forbid changes of it.
func (c *capture) keepFlags(e *entry, to *os.File) error {
	flags, err := shownFlags(e, c.v.Open, e.layer == 0)
	if err != nil || flags&flagsForbid == 0 {
		return err
	}
	letters := ""
	for l, flag := range forbidLetters {
		if flags&flag != 0 {
			letters += string(l)
		}
	}
	return setPrivateOf(to, copiedFlags, string(c.v.Open)+" "+letters)
}

// copyForbid carries what keepFlags has noted to a copy of a copy.
func copyForbid(from, to *os.File) error {
	v, err := xattr(from, private+copiedFlags)
	if v == nil || err != nil {
		return err
	}
	return setPrivateOf(to, copiedFlags, string(v))
}
