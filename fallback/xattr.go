package fallback

import (
	"errors"
	"sort"

	"golang.org/x/sys/unix"
)

// xattr is one extended attribute. ACLs and capabilities are among them
// (system.posix_acl_access, security.capability).
type xattr struct{ name, value string }

// spot is an entry in a form that calls with paths take and that nobody can
// move elsewhere: an open descriptor under /proc/self/fd, or, for a symbolic
// link, its name in an open directory.
type spot struct {
	at   string
	link bool
}

func spotOf(fd int) spot                  { return spot{procPath(fd), false} }
func spotIn(dirfd int, name string) spot  { return spot{procPath(dirfd) + "/" + name, true} }
func (s spot) list(b []byte) (int, error) { return choose(s, unix.Listxattr, unix.Llistxattr)(s.at, b) }

func (s spot) get(name string, b []byte) (int, error) {
	return choose(s, unix.Getxattr, unix.Lgetxattr)(s.at, name, b)
}

func (s spot) set(name string, v []byte) error {
	return choose(s, unix.Setxattr, unix.Lsetxattr)(s.at, name, v, 0)
}

func (s spot) remove(name string) error {
	return choose(s, unix.Removexattr, unix.Lremovexattr)(s.at, name)
}

func choose[F any](s spot, follow, stay F) F {
	if s.link {
		return stay
	}
	return follow
}

// readXattrs reads all extended attributes of an entry. The result is what
// packXattrs makes.
func readXattrs(at spot, path string) (string, error) {
	names, err := growing(at.list)
	switch {
	case errors.Is(err, unix.ENOTSUP):
		return "", nil
	case err != nil:
		return "", sysError("listxattr", path, err)
	case len(names) == 0:
		return "", nil
	}
	var all []xattr
	for _, name := range nulSeparated(names) {
		v, err := growing(func(b []byte) (int, error) { return at.get(name, b) })
		switch {
		case err == nil:
			all = append(all, xattr{name, string(v)})
		case errors.Is(err, unix.ENODATA): // went meanwhile
		case errors.Is(err, unix.ENOTSUP): // listed by the filesystem, not to be had
		default:
			return "", sysError("getxattr "+name, path, err)
		}
	}
	return packXattrs(all), nil
}

// growing calls get with a buffer that is large enough; the largest value and
// list are 64 KiB (xattr(7)), yet they may grow between two calls.
func growing(get func([]byte) (int, error)) ([]byte, error) {
	small := make([]byte, 256)
	n, err := get(small)
	if err == nil {
		return small[:n], nil
	}
	for size := 4096; errors.Is(err, unix.ERANGE) && size <= 1<<20; size *= 4 {
		b := make([]byte, size)
		if n, err = get(b); err == nil {
			return b[:n], nil
		}
	}
	return nil, err
}

func nulSeparated(b []byte) []string {
	var names []string
	for start, i := 0, 0; i < len(b); i++ {
		if b[i] == 0 {
			names = append(names, string(b[start:i]))
			start = i + 1
		}
	}
	return names
}

// packXattrs makes one string of attributes, the same for the same set.
func packXattrs(all []xattr) string {
	if len(all) == 0 {
		return ""
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	var e encoder
	for _, x := range all {
		e.str(x.name)
		e.str(x.value)
	}
	return string(e.b)
}

func unpackXattrs(s string) []xattr {
	var all []xattr
	for d := (decoder{s: s}); d.s != "" && d.err == nil; {
		all = append(all, xattr{d.str(), d.str()})
	}
	return all
}

// writeXattrs makes the attributes of an entry those of want. Those that only
// root may write are left out without root (see losses).
func writeXattrs(at spot, path, want string) error {
	have, err := readXattrs(at, path)
	if err != nil || have == want {
		return err
	}
	old := map[string]string{}
	for _, x := range unpackXattrs(have) {
		old[x.name] = x.value
	}
	for _, x := range unpackXattrs(want) {
		v, ok := old[x.name]
		delete(old, x.name)
		if ok && v == x.value {
			continue
		}
		if err := at.set(x.name, []byte(x.value)); err != nil && !forbidden(err) {
			return sysError("setxattr "+x.name, path, err)
		}
	}
	for name := range old {
		if err := at.remove(name); err != nil && !forbidden(err) && !errors.Is(err, unix.ENODATA) {
			return sysError("removexattr "+name, path, err)
		}
	}
	return nil
}

// forbidden says that the kernel kept a process without root from setting what
// only root may set. As root it is an error like any other.
func forbidden(err error) bool {
	return errors.Is(err, unix.EPERM) && unix.Geteuid() != 0
}
