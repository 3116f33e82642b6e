package fallback

// linker gives link numbers: paths of one state have the same number when they
// are names of one inode. Inode numbers do not serve, since a restored file has
// a new one and the kernel uses old ones again.
type linker struct {
	root  *node
	next  uint64
	fresh map[uint64]uint64 // by inode number, given in this scan

	byIno   map[uint64]uint64 // link numbers of the index, made when first needed
	members map[uint64]int    // names of each
}

// name sets the link number of a finding.
func (l *linker) name(f *found) {
	if f.now.mode == 0 || f.now.isDir() {
		return
	}
	var old *entry
	if f.old != nil && !f.old.isDir() {
		old = &f.old.entry
	}
	if old != nil && old.ino == f.now.ino {
		f.now.link = old.link
		return
	}
	if f.nlink > 1 {
		l.load()
		if n, ok := l.byIno[f.now.ino]; ok {
			f.now.link = n
			return
		}
	} else if old != nil {
		// Replaced by a new file under the same name. Only if the old one had
		// other names has anything changed that a restore must see.
		if l.load(); l.members[old.link] == 1 {
			f.now.link = old.link
			return
		}
	}
	n, ok := l.fresh[f.now.ino]
	if !ok {
		n = l.next
		l.next++
		l.fresh[f.now.ino] = n
	}
	f.now.link = n
}

func (l *linker) load() {
	if l.byIno != nil {
		return
	}
	l.byIno, l.members = map[uint64]uint64{}, map[uint64]int{}
	l.root.each(".", func(_ string, n *node) {
		if !n.isDir() && n.link != 0 {
			l.byIno[n.ino] = n.link
			l.members[n.link]++
		}
	})
}
