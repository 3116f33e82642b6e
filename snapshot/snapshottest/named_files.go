package snapshottest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
)

func contents() []sequence {
	big := strings.Repeat("0123456789abcdef", 1<<14) // 256 KiB
	base := []Op{
		write("f", "some text\n"), write("big", big), write("empty", ""), write("log", "line\n"),
		write("sparse", "head"), truncate("sparse", 1<<30), overwrite("sparse", 700<<20, "island"),
		touch("f", 1_234_567_890, 987654321),
	}
	return []sequence{
		{"append", base, [][]Op{
			{appendTo("log", "2\n")},
			{appendTo("log", "3\n"), appendTo("empty", "x")},
			{appendTo("big", "tail")},
		}},
		{"truncate", base, [][]Op{
			{truncate("big", 1000)},
			{truncate("big", 0), truncate("f", 4), write("log", "")},
			{truncate("f", 1<<20)},
		}},
		{"overwrite in place", base, [][]Op{
			{overwrite("big", 100_000, "HERE")},
			{overwrite("f", 5, "TEXT"), overwrite("f", 20, "past the end")},
		}},
		{"overwrite with the time put back", base, [][]Op{
			{quiet("f", 0, "SOME")},
			{quiet("big", 4096, "quiet")},
			{quiet("f", 0, "SOME")},
		}},
		{"write through a mapping", base, [][]Op{
			{mapped("big", 8192, "mapped")},
			{mapped("f", 0, "MAP")},
		}},
		{"replace by rename", base, [][]Op{
			{replace("f", "replaced")},
			{replace("f", "replaced again"), replace("log", "")},
		}},
		{"same bytes, other time", base, [][]Op{
			{write("f", "some text\n")},
			{touch("f", 4_000_000_000, 1), touch("big", 0, 0)},
			{touch("f", -5, 999_999_999)},
		}},
		{"sparse files", base, [][]Op{
			{truncate("hole", 1<<30)},
			{overwrite("hole", 1<<29, "middle"), chmod("sparse", 0o600)},
			{overwrite("sparse", 1<<20, "x"), punch("big", 65536, 131072), truncate("hole", 2<<30)},
		}},
	}
}

// acl is a POSIX ACL as system.posix_acl_access holds it: version 2, then
// entries of tag, permissions and id (linux/posix_acl_xattr.h).
func acl(user, group, other uint16, named map[uint32]uint16) string {
	const tagUser, tagNamed, tagGroup, tagMask, tagOther, noID = 1, 2, 4, 0x10, 0x20, 0xffffffff
	b := binary.LittleEndian.AppendUint32(nil, 2)
	add := func(tag, perm uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, perm)
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	add(tagUser, user, noID)
	for id, perm := range named {
		add(tagNamed, perm, id)
	}
	add(tagGroup, group, noID)
	add(tagMask, 7, noID)
	add(tagOther, other, noID)
	return string(b)
}

// capability is security.capability, version 2: cap_net_bind_service=ep
// (linux/capability.h).
func capability() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	b = binary.LittleEndian.AppendUint32(b, 1<<10)
	return string(append(b, make([]byte, 12)...))
}

const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
	capName    = "security.capability"
)

func attributes() []sequence {
	base := slices.Concat(aTree(), []Op{
		write("x", "#!/bin/true\n"), chmod("x", 0o4755), setx("x", capName, capability()),
		setx("d/f", "user.note", "noted"), setx("d", "user.dir", "on a directory"), chmod("other", 0o2775),
		setx("other", aclDefault, acl(7, 5, 0, map[uint32]uint16{1001: 6})),
		setx("d/g", aclAccess, acl(6, 4, 4, map[uint32]uint16{1002: 4})),
	})
	return []sequence{
		{"modes", base, [][]Op{
			{chmod("d/f", 0), chmod("d", 0o1777), chmod("x", 0o6711)},
			{chmod("d/s", 0o2700), chmod("d/f", 0o644)},
			{chmod("d", 0o1777), chmod("d", 0o755)},
		}},
		{"owners", base, [][]Op{
			{chown("d/f", 1000, 1000), chown("d", 33, 33), chown("x", 5, 5)}, // takes setuid and capability away
			{chown("d/s/h", 1<<31, 1<<31), chown("d/f", 0, 0)},
		}},
		{"extended attributes", base, [][]Op{
			{setx("d/f", "user.note", "changed"), setx("d/f", "user.more", strings.Repeat("v", 1000))},
			{unsetx("d/f", "user.note"), setx("d/s", "trusted.t", "\x00\xff binary"), unsetx("d", "user.dir")},
			{unsetx("d/f", "user.absent"), setx("d/s/h", "user.empty", "")},
		}},
		{"capabilities", base, [][]Op{
			{setx("d/f", capName, capability())},
			{write("x", "a write takes it away")},
			{unsetx("d/f", capName), setx("x", capName, capability())},
		}},
		{"ACLs", base, [][]Op{
			{setx("d/f", aclAccess, acl(6, 4, 0, map[uint32]uint16{1001: 7}))},
			{chmod("d/g", 0o600), unsetx("d/f", aclAccess)},
			{setx("d", aclDefault, acl(7, 7, 7, map[uint32]uint16{1003: 1})), write("d/inherits", "i"), mkdir("d/inheritsdir", 0)},
			{mkdir("other/sub", 0), write("other/sub/f", "gid and ACL from above"), unsetx("other", aclDefault)},
		}},
		{"the root's own attributes", base, [][]Op{
			{chmod(".", 0o711)},
			{chown(".", 33, 44)},
			{setx(".", "user.root", "r")},
			{touch(".", 1_000_000_000, 42)},
			{setx(".", aclDefault, acl(7, 5, 5, map[uint32]uint16{1001: 7})), chmod(".", 0o1777)},
			{unsetx(".", "user.root")},
		}},
		{"flags", base, [][]Op{
			{chattr("d/f", flagNoatime), chattr("x", flagImmutable)},
			{write("x", "refused"), chattr("x", 0), write("x", "granted")},
			{chattr("d/g", flagAppend), appendTo("d/g", "a"), write("d/g", "refused")},
			{rm("d/g"), chattr("d/g", 0), rm("d/g"), chattr("d/f", 0)},
		}},
		{"opened for writing", base, [][]Op{
			{openRW("d/f"), openRW("x")},
			{chmod("d/f", 0o600), openRW("d/f"), chown("d/g", 1, 1), quiet("d/g", 0, "G")},
			{touch("d/s/h", 1_000_000_000, 1), chmod("other/o", 0o600)},
			{openRW("d/s/h"), openRW("other/o")},
		}},
		{"only looking", base, [][]Op{
			{read("d/f"), list("d"), list("."), read("x"), read("nothing")},
			{chmod("d/f", 0o600), list("d/s")},
			{read("d/s/h")},
		}},
	}
}

func specials() []sequence {
	base := []Op{
		mkdir("d", 0o755), mkfifo("fifo"), mksock("sock"), mkchar("null", dev(1, 3)), mkblock("block", dev(240, 77)),
		write("d/f", "f"),
	}
	return []sequence{
		{"special files made", base, [][]Op{
			{mkfifo("d/p"), mksock("d/s"), mkchar("d/c", dev(240, 1)), mkblock("d/b", dev(240, 2))},
			{chmod("d/p", 0o600), chown("d/s", 3, 4), touch("d/c", 1_000_000_000, 9)},
			{rm("d/p"), rm("d/s"), rm("d/c"), rm("d/b")},
		}},
		{"special files changed", base, [][]Op{
			{chmod("fifo", 0o666), chown("sock", 9, 9), setx("null", "trusted.t", "t"), touch("block", 1_100_000_000, 1)},
			{mv("fifo", "d/fifo"), mv("sock", "fifo"), rm("null"), write("null", "a file now")},
			{rm("block"), mkfifo("block")},
		}},
		{"a device 0/0", base, [][]Op{
			{mkchar("white", 0)},
			{write("d/f", "g"), mkchar("d/f2", 0), rm("d/f")},
		}},
	}
}

func names() []sequence {
	odd := []string{
		strings.Repeat("n", 255), "sp ace", "new\nline", "co:lon", "com,ma", `back\slash`, `"quo'te"`, "tab\t", "-rf", "*", "$HOME", "~",
		"\xff\xfenot utf8", "\u00e9", "e\u0301", ".wh.foo", ".wh..wh..opq", ".wh.", "#inode", "work", "index", ".hidden", "...", "u", "s", "upper=x,lowerdir=y",
	}
	dir := func(n string) string { return "dir " + n[:min(len(n), 200)] }
	var make, change, remove, dirs, mvs []Op
	for i, n := range odd {
		make = append(make, write(n, "a file called "+n))
		dirs = append(dirs, mkdir(dir(n), 0o755), write(dir(n)+"/"+n, n))
		if i%2 == 0 {
			change = append(change, appendTo(n, "!"))
		} else {
			remove = append(remove, rm(n))
			mvs = append(mvs, mv(dir(n), "moved "+dir(n)))
		}
	}
	return []sequence{
		{"odd names", make, [][]Op{change, remove, make, {rm(".wh.foo"), write("foo", "f"), rm("foo")}}},
		{"odd directory names", slices.Clone(dirs), [][]Op{mvs, {rmAll(dir(odd[0])), rmAll(dir(odd[1])), rmAll("moved " + dir(odd[1]))}}},
		{"rename of a long path", longPath(), [][]Op{
			{mv(long+"/sub", long+"/here"), mv(long+"/here", long+"/sub")},
			{ln(long+"/f", "linked"), mv(long+"/f", "f"), appendTo(long+"/f2", "up"), mv(long+"/f2", "f2"), mv(long+"/sub", "sub")},
			{mv(long, "a directory/short")},
			{mv("a directory/short/other", "a directory/short/same parent")},
		}},
		{"deep directories", deep(12), [][]Op{
			{mv("0", "x")},
			{write("x/1/2/3/4/5/6/7/8/9/10/11/f", "deep"), mv("x/1/2/3", "y")},
			{rmAll("x/1"), mv("y", "x/1")},
		}},
		{"big directory", many("big/", bigDirectory()), [][]Op{
			{write("big/100", "changed"), rm("big/101"), write("big/new", "n")},
			{mv("big", "moved")},
			append(many("moved/x", 50), rm("moved/7")),
			{rmAll("moved"), mkdir("moved", 0o755)},
		}},
	}
}

// bigDirectory is how many names are in one: more than fit a block of ext4 and one
// read of a directory. All are compared after every step.
func bigDirectory() int {
	if testing.Short() {
		return 340
	}
	return 1000
}

const long = "a directory/" +
	"long-name-of-50-bytes-----------------------------" + "long-name-of-50-bytes-----------------------------" +
	"long-name-of-50-bytes-----------------------------" + "long-name-of-50-bytes-----------------------------" +
	"and-another-50-bytes------------------------------"

// longPath has directories whose paths do not fit a redirect of overlayfs.
func longPath() []Op {
	return []Op{
		mkdir("a directory", 0o755), mkdir(long, 0o755), write(long+"/f", "f"), write(long+"/f2", "f"),
		mkdir(long+"/sub", 0o755), write(long+"/sub/g", "g"), mkdir(long+"/other", 0o755), write(long+"/other/h", "h"),
	}
}

// deep is a path of n directories, a file at its end.
func deep(n int) (ops []Op) {
	path := ""
	for i := range n {
		path += fmt.Sprintf("%d/", i)
		ops = append(ops, mkdir(path[:len(path)-1], 0o755))
	}
	return append(ops, write(path+"f", "at the end"))
}

// many are n files whose names begin with prefix, in a directory made first.
func many(prefix string, n int) (ops []Op) {
	if dir, rest, _ := strings.Cut(prefix, "/"); rest == "" {
		ops = append(ops, mkdir(dir, 0o755))
	}
	for i := range n {
		ops = append(ops, write(fmt.Sprintf("%s%d", prefix, i), "x"))
	}
	return ops
}
