package fallback

import (
	"encoding/binary"
	"errors"

	"deployx/snapshot"
)

// errDamaged is wrapped with the name of the file.
var errDamaged = errors.New("damaged: what it says makes no sense")

// encoder appends values in the form that decoder reads: varints, and strings
// with their length before them.
type encoder struct{ b []byte }

func (e *encoder) uint(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)   { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) str(s string)  { e.uint(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) stamp(t stamp) { e.int(t.sec); e.uint(uint64(t.nsec)) }
func (e *encoder) bool(v bool)   { e.uint(map[bool]uint64{true: 1}[v]) }
func (e *encoder) obj(o object)  { e.uint(o.pack); e.int(o.off) }

// entry writes a *entry; nil, for a path that is not there, is one zero byte.
func (e *encoder) entry(x *entry) {
	if x == nil {
		e.uint(0)
		return
	}
	e.uint(uint64(x.mode))
	e.uint(uint64(x.uid))
	e.uint(uint64(x.gid))
	e.int(x.size)
	e.stamp(x.mtime)
	e.stamp(x.ctime)
	e.stamp(x.btime)
	e.uint(x.ino)
	e.uint(x.rdev)
	e.uint(x.link)
	e.obj(x.obj)
	e.str(x.target)
	e.str(x.xattrs)
	e.uint(uint64(x.flags))
	e.bool(x.racy)
}

func (e *encoder) changes(cs []change) {
	e.uint(uint64(len(cs)))
	for i := range cs {
		e.str(cs[i].path)
		e.entry(cs[i].pre)
		e.entry(cs[i].post)
	}
}

func (e *encoder) view(v *shown) {
	e.bool(v.hidden)
	e.str(string(v.Open))
	e.uint(uint64(len(v.Layers)))
	for _, l := range v.Layers {
		e.str(string(l))
	}
}

// decoder reads from a string, so that what it returns shares its memory.
// After the first mistake everything is zero and err is set.
type decoder struct {
	s   string
	err error
}

func (d *decoder) fail() uint64 {
	d.err = errDamaged
	d.s = ""
	return 0
}

func (d *decoder) uint() uint64 {
	var v uint64
	for i := 0; i < len(d.s) && i < binary.MaxVarintLen64; i++ {
		b := d.s[i]
		v |= uint64(b&0x7f) << (7 * i)
		if b < 0x80 {
			d.s = d.s[i+1:]
			return v
		}
	}
	return d.fail()
}

func (d *decoder) int() int64 {
	u := d.uint()
	return int64(u>>1) ^ -int64(u&1)
}

func (d *decoder) str() string {
	n := d.uint()
	if n > uint64(len(d.s)) {
		d.fail()
		return ""
	}
	s := d.s[:n]
	d.s = d.s[n:]
	return s
}

// count reads a length of a list whose items take a byte or more each.
func (d *decoder) count() int {
	n := d.uint()
	if n > uint64(len(d.s)) {
		return int(d.fail())
	}
	return int(n)
}

func (d *decoder) stamp() stamp { return stamp{d.int(), uint32(d.uint())} }
func (d *decoder) bool() bool   { return d.uint() != 0 }

func (d *decoder) entry() *entry {
	mode := uint32(d.uint())
	if mode == 0 {
		return nil
	}
	x := &entry{mode: mode}
	d.rest(x)
	return x
}

// rest fills everything but the mode.
func (d *decoder) rest(x *entry) {
	x.uid, x.gid = uint32(d.uint()), uint32(d.uint())
	x.size = d.int()
	x.mtime, x.ctime, x.btime = d.stamp(), d.stamp(), d.stamp()
	x.ino, x.rdev, x.link = d.uint(), d.uint(), d.uint()
	x.obj = object{d.uint(), d.int()}
	x.target, x.xattrs = d.str(), d.str()
	x.flags = uint32(d.uint())
	x.racy = d.bool()
}

func (d *decoder) changes() []change {
	cs := make([]change, d.count())
	for i := range cs {
		cs[i] = change{path: d.str(), pre: d.entry(), post: d.entry()}
	}
	return cs
}

func (d *decoder) view() shown {
	v := shown{hidden: d.bool()}
	v.Open = snapshot.LayerID(d.str())
	for range d.count() {
		v.Layers = append(v.Layers, snapshot.LayerID(d.str()))
	}
	return v
}
