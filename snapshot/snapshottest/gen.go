package snapshottest

import (
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"deployx/internal/treecmp"
)

// gen makes random operations that fit a tree: most succeed, and what is
// refused must be refused on both sides.
type gen struct {
	*rand.Rand
	total                  int
	all, files, dirs, rest []string      // paths of the tree at hand; dirs includes "."
	avoid                  func(Op) bool // operations not to make; may be nil
}

// ops are n operations for a tree that looks like pic, which is nil when it is
// empty. Those that come later may meet a tree that the earlier ones changed.
func (g *gen) ops(pic treecmp.Picture, n int) []Op {
	g.look(pic)
	ops := make([]Op, n)
	for i := range ops {
		if pic == nil { // a base is made, not taken apart
			ops[i] = g.maker()
			g.learn(ops[i])
			continue
		}
		ops[i] = g.op()
		for g.avoid != nil && g.avoid(ops[i]) {
			ops[i] = g.op()
		}
	}
	return ops
}

func (g *gen) look(pic treecmp.Picture) {
	g.all, g.files, g.dirs, g.rest = nil, nil, []string{"."}, nil
	for _, path := range pic.Paths() {
		switch pic[path].Type {
		case 'd':
			if path == "." {
				continue
			}
			g.dirs = append(g.dirs, path)
		case 'f':
			g.files = append(g.files, path)
		default:
			g.rest = append(g.rest, path)
		}
		g.all = append(g.all, path)
	}
}

// learn notes what a maker makes, so that a base gets some depth.
func (g *gen) learn(op Op) {
	if op.Verb == "mkdir" {
		g.dirs = append(g.dirs, op.Path)
	} else if op.Verb == "write" {
		g.files = append(g.files, op.Path)
	}
	g.all = append(g.all, op.Path)
}

type weighted struct {
	n    int
	make func() Op
}

func (g *gen) op() Op {
	kinds := g.kinds()
	n := g.IntN(g.total)
	for _, k := range kinds {
		if n -= k.n; n < 0 {
			return k.make()
		}
	}
	panic("weights do not add up")
}

// maker is an operation that makes something under a name of its own.
func (g *gen) maker() Op {
	path := g.fresh()
	for n := 1; slices.Contains(g.all, path); n++ {
		if path = g.fresh(); n%100 == 0 { // all names may be taken
			path += strconv.Itoa(n)
		}
	}
	switch g.IntN(10) {
	case 0, 1, 2:
		return mkdir(path, int64(0o700|g.IntN(0o100)))
	case 3:
		return symlink(g.target(), path)
	case 4:
		return mkfifo(path)
	default:
		return write(path, g.data())
	}
}

// kinds are the operations with their weights.
func (g *gen) kinds() []weighted {
	return []weighted{
		{10, func() Op { return write(g.fresh(), g.data()) }},
		{8, func() Op { return write(g.file(), g.data()) }},
		{6, func() Op { return appendTo(g.file(), g.data()) }},
		{5, func() Op { return overwrite(g.file(), g.Int64N(9000), g.data()) }},
		{3, func() Op { return quiet(g.file(), g.Int64N(100), "quiet") }},
		{2, func() Op { return mapped(g.file(), g.Int64N(50), "mapped") }},
		{4, func() Op { return replace(g.file(), g.data()) }},
		{3, func() Op { return truncate(g.file(), g.Int64N(20000)) }},
		{1, func() Op { return truncate(g.file(), 1<<30) }},
		{1, func() Op { return punch(g.file(), 0, 4096) }},
		{9, func() Op { return mkdir(g.fresh(), int64(0o700|g.IntN(0o100))) }},
		{6, func() Op { return rm(g.any()) }},
		{5, func() Op { return rmAll(g.any()) }},
		{2, func() Op { return rmdir(g.dir()) }},
		{14, func() Op { return mv(g.dir(), g.fresh()) }},
		{4, func() Op { return mv(g.dir(), g.dir()) }},
		{6, func() Op { return mv(g.any(), g.fresh()) }},
		{5, func() Op { return mv(g.file(), g.file()) }},
		{3, func() Op { return swap(g.any(), g.any()) }},
		{6, func() Op { return ln(g.file(), g.fresh()) }},
		{4, func() Op { return symlink(g.target(), g.fresh()) }},
		{2, func() Op { return mkfifo(g.fresh()) }},
		{1, func() Op { return mksock(g.fresh()) }},
		{1, func() Op { return mkchar(g.fresh(), dev(240, g.Int64N(2))) }},
		{1, func() Op { return mkchar(g.fresh(), 0) }},
		{8, func() Op { return chmod(g.any(), g.Int64N(0o10000)) }},
		{3, func() Op { return chmod(g.dir(), 0o700|g.Int64N(0o10000)) }},
		{5, func() Op { return chown(g.any(), g.Int64N(3), g.Int64N(3)) }},
		{5, func() Op { return touch(g.any(), 1e9+g.Int64N(1e8), g.Int64N(1e9)) }},
		{5, func() Op { return setx(g.any(), g.attr(), g.data()[:g.IntN(10)]) }},
		{2, func() Op { return unsetx(g.any(), g.attr()) }},
		{2, func() Op { return setx(g.file(), aclAccess, acl(7, 5, 4, map[uint32]uint16{1001: uint16(g.IntN(8))})) }},
		{1, func() Op { return setx(g.dir(), aclDefault, acl(7, 5, 4, map[uint32]uint16{1001: uint16(g.IntN(8))})) }},
		{1, func() Op { return setx(g.file(), capName, capability()) }},
		{2, func() Op { return openRW(g.file()) }},
		{2, func() Op { return read(g.file()) }},
		{1, func() Op { return list(g.dir()) }},
	}
}

// name is one of a few, so that they meet again.
func (g *gen) name() string {
	names := []string{"a", "b", "c", "d", "e", "f", "g", ".wh.a", "new\nline", "\xff\xfe", "with space", strings.Repeat("n", 50)}
	return names[g.IntN(len(names))]
}

// fresh is a path that may not be there yet, in a directory that is.
func (g *gen) fresh() string {
	dir := g.dirs[g.IntN(len(g.dirs))]
	if dir == "." || strings.Count(dir, "/") > 3 {
		return g.name()
	}
	return dir + "/" + g.name()
}

func (g *gen) pick(from []string) string {
	if len(from) == 0 {
		return g.fresh()
	}
	return from[g.IntN(len(from))]
}

func (g *gen) file() string { return g.pick(g.files) }
func (g *gen) dir() string  { return g.pick(g.dirs[min(1, len(g.dirs)-1):]) }

// any is any path, now and then the tree's own root.
func (g *gen) any() string {
	if g.IntN(12) == 0 {
		return "."
	}
	return g.pick(g.all)
}

func (g *gen) target() string {
	if g.IntN(4) == 0 {
		return "/nonexistent/deployx"
	}
	return g.name()
}

func (g *gen) attr() string {
	return []string{"user.one", "user.two", "trusted.three"}[g.IntN(3)]
}

// data is never shorter than 10 bytes, and may be of some blocks.
func (g *gen) data() string {
	word := string(rune('a'+g.IntN(26))) + "-content\n"
	return strings.Repeat(word, []int{1, 1, 1, 3, 900, 3000}[g.IntN(6)])
}
