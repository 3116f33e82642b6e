package fallback

import (
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"sort"
	"strings"

	"deployx/internal/durable"
	"deployx/snapshot"
)

// node is one path of the index.
type node struct {
	entry
	name string
	kids []*node // by name; nil unless it is a directory
}

// child finds a kid by name.
func (n *node) child(name string) *node {
	i := sort.Search(len(n.kids), func(i int) bool { return n.kids[i].name >= name })
	if i < len(n.kids) && n.kids[i].name == name {
		return n.kids[i]
	}
	return nil
}

// find walks down to path; "." is n itself.
func (n *node) find(path string) *node {
	if path == "." {
		return n
	}
	for n != nil && path != "" {
		var name string
		name, path, _ = strings.Cut(path, "/")
		n = n.child(name)
	}
	return n
}

// each visits n and all below it, a directory before what it holds.
func (n *node) each(path string, visit func(path string, n *node)) {
	visit(path, n)
	for _, k := range n.kids {
		k.each(join(path, k.name), visit)
	}
}

// change is one path before and after; nil is a path that is not there.
type change struct {
	path      string
	pre, post *entry
}

// shown is the view that the tree shows, as the driver remembers it.
type shown struct {
	snapshot.View
	hidden bool // a plain directory; the index is that of the last look
}

func (s *shown) is(v snapshot.View) bool {
	return !s.hidden && s.Open == v.Open && slices.Equal(s.Layers, v.Layers)
}

func (s *shown) same(o *shown) bool {
	return s.hidden == o.hidden && (s.hidden || s.is(o.View))
}

// index is what the driver knows of the tree: every path as it was when it was
// last looked at, and the view that was shown then.
type index struct {
	root     *node
	tree     string   // the tree's path
	filter   []string // the patterns that were left out
	seq      uint64   // of the last transaction in it
	view     shown
	pack     uint64 // the next number of a pack
	link     uint64 // the next link number
	stored   int64  // bytes in the store
	restored uint64 // the last journal that is done
}

// apply puts the after side of changes into the index.
func (ix *index) apply(cs []change) {
	byDir := map[string][]change{}
	for _, c := range cs {
		if c.path == "." {
			if c.post != nil {
				ix.root.entry = *c.post
			}
			continue
		}
		dir, _ := split(c.path)
		byDir[dir] = append(byDir[dir], c)
	}
	dirs := make([]string, 0, len(byDir))
	for d := range byDir {
		dirs = append(dirs, d)
	}
	slices.Sort(dirs) // a directory sorts before all below it
	for _, d := range dirs {
		if n := ix.root.find(d); n != nil && n.isDir() {
			n.merge(byDir[d])
		}
	}
}

// merge applies changes of n's own kids.
func (n *node) merge(cs []change) {
	slices.SortFunc(cs, func(a, b change) int { return strings.Compare(a.path, b.path) })
	kids := make([]*node, 0, len(n.kids)+len(cs))
	i := 0
	for _, c := range cs {
		_, name := split(c.path)
		for i < len(n.kids) && n.kids[i].name < name {
			kids = append(kids, n.kids[i])
			i++
		}
		k := &node{name: name}
		if i < len(n.kids) && n.kids[i].name == name {
			k = n.kids[i]
			i++
		}
		if c.post == nil {
			continue
		}
		k.entry = *c.post
		if !k.isDir() {
			k.kids = nil
		}
		kids = append(kids, k)
	}
	n.kids = append(kids, n.kids[i:]...)
}

const indexMagic = "deployx copy index 1\n"

// crcTable is Castagnoli's, which processors compute.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// save writes the index durably; a crash leaves the old one or the new.
func (ix *index) save(path string) error {
	e := encoder{b: make([]byte, 0, 1<<20)}
	e.b = append(e.b, indexMagic...)
	e.str(ix.tree)
	e.uint(uint64(len(ix.filter)))
	for _, p := range ix.filter {
		e.str(p)
	}
	e.uint(ix.seq)
	e.view(&ix.view)
	e.uint(ix.pack)
	e.uint(ix.link)
	e.int(ix.stored)
	e.uint(ix.restored)
	ix.root.encode(&e)
	e.b = appendSum(e.b)
	return durable.Write(path, e.b)
}

func (n *node) encode(e *encoder) {
	e.str(n.name)
	e.entry(&n.entry)
	e.uint(uint64(len(n.kids)))
	for _, k := range n.kids {
		k.encode(e)
	}
}

// appendSum ends a file with the checksum of all before it.
func appendSum(b []byte) []byte { return appendUint32(b, checksum(b)) }

// readSummed reads a file that appendSum ended, and checks how it begins.
func readSummed(path, magic string) (*decoder, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(string(b[:min(len(b), len(magic))]), magic) {
		return nil, unknownVersion(path)
	}
	if len(b) < len(magic)+4 || uint32At(b[len(b)-4:]) != checksum(b[:len(b)-4]) {
		return nil, fmt.Errorf("%s: %w", path, errDamaged)
	}
	return &decoder{s: string(b[len(magic) : len(b)-4])}, nil
}

func unknownVersion(path string) error {
	return &snapshot.Error{
		Code: snapshot.CodeUnsupported,
		Msg:  fmt.Sprintf("%s was not written by this version of the copy driver", path),
		Hint: "use the deployx that wrote it; nothing was touched",
	}
}

// loadIndex reads what save wrote; a missing file is an error that
// errors.Is(err, fs.ErrNotExist).
func loadIndex(path string) (*index, error) {
	d, err := readSummed(path, indexMagic)
	if err != nil {
		return nil, err
	}
	ix := &index{tree: d.str()}
	for range d.count() {
		ix.filter = append(ix.filter, d.str())
	}
	ix.seq = d.uint()
	ix.view = d.view()
	ix.pack, ix.link, ix.stored, ix.restored = d.uint(), d.uint(), d.int(), d.uint()
	ix.root = d.node()
	if d.err != nil {
		return nil, fmt.Errorf("%s: %w", path, d.err)
	}
	return ix, nil
}

func (d *decoder) node() *node {
	n := &node{name: d.str()}
	if n.mode = uint32(d.uint()); n.mode == 0 {
		d.fail()
		return n
	}
	d.rest(&n.entry)
	if k := d.count(); k > 0 {
		n.kids = make([]*node, k)
		for i := range n.kids {
			n.kids[i] = d.node()
		}
	}
	return n
}
