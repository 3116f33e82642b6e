package snapshottest

import (
	"fmt"
	"strings"
)

// Op is one operation on a tree, as a program would do it: what is repeated on
// the driver's tree and on the plain one. Paths are below the tree's root,
// which is ".". The zero fields of a verb that does not use them are not
// printed.
type Op struct {
	Verb string
	Path string
	To   string // new path, link target
	Name string // of an extended attribute
	Data string // contents, value of an attribute
	N    int64  // mode, size, offset, device, owner, time
	M    int64  // group, length, nanoseconds
}

// String is a Go expression without its package, to be pasted into a sequence.
func (op Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "{Verb: %q, Path: %q", op.Verb, op.Path)
	for _, f := range []struct{ name, value string }{
		{"To", op.To},
		{"Name", op.Name},
		{"Data", op.Data},
	} {
		if len(f.value) > 80 {
			fmt.Fprintf(&b, ", %s: %q… (%d bytes)", f.name, f.value[:80], len(f.value))
		} else if f.value != "" {
			fmt.Fprintf(&b, ", %s: %q", f.name, f.value)
		}
	}
	if op.N != 0 {
		fmt.Fprintf(&b, ", N: %#o", op.N)
	}
	if op.M != 0 {
		fmt.Fprintf(&b, ", M: %#o", op.M)
	}
	return b.String() + "}"
}

// What follows makes sequences readable: each is the system call or the command
// that it is named after.

func write(path, data string) Op        { return Op{Verb: "write", Path: path, Data: data} }
func appendTo(path, data string) Op     { return Op{Verb: "append", Path: path, Data: data} }
func replace(path, data string) Op      { return Op{Verb: "replace", Path: path, Data: data} }
func truncate(path string, n int64) Op  { return Op{Verb: "truncate", Path: path, N: n} }
func mkdir(path string, mode int64) Op  { return Op{Verb: "mkdir", Path: path, N: mode} }
func rm(path string) Op                 { return Op{Verb: "unlink", Path: path} }
func rmdir(path string) Op              { return Op{Verb: "rmdir", Path: path} }
func rmAll(path string) Op              { return Op{Verb: "rmtree", Path: path} }
func mv(path, to string) Op             { return Op{Verb: "rename", Path: path, To: to} }
func swap(path, to string) Op           { return Op{Verb: "exchange", Path: path, To: to} }
func ln(path, to string) Op             { return Op{Verb: "link", Path: path, To: to} }
func symlink(target, path string) Op    { return Op{Verb: "symlink", Path: path, To: target} }
func mkfifo(path string) Op             { return Op{Verb: "mkfifo", Path: path, N: 0o640} }
func mksock(path string) Op             { return Op{Verb: "mksock", Path: path} }
func mkchar(path string, dev int64) Op  { return Op{Verb: "mkchar", Path: path, N: dev} }
func mkblock(path string, dev int64) Op { return Op{Verb: "mkblock", Path: path, N: dev} }
func chmod(path string, mode int64) Op  { return Op{Verb: "chmod", Path: path, N: mode} }
func chown(path string, u, g int64) Op  { return Op{Verb: "chown", Path: path, N: u, M: g} }
func touch(path string, s, ns int64) Op { return Op{Verb: "touch", Path: path, N: s, M: ns} }
func unsetx(path, name string) Op       { return Op{Verb: "removexattr", Path: path, Name: name} }
func chattr(path string, fl int64) Op   { return Op{Verb: "chattr", Path: path, N: fl} }
func punch(path string, at, n int64) Op { return Op{Verb: "punch", Path: path, N: at, M: n} }
func openRW(path string) Op             { return Op{Verb: "open", Path: path} }
func read(path string) Op               { return Op{Verb: "read", Path: path} }
func list(path string) Op               { return Op{Verb: "list", Path: path} }

func setx(path, name, value string) Op {
	return Op{Verb: "setxattr", Path: path, Name: name, Data: value}
}

// overwrite writes in the middle of a file; quiet then puts the old
// modification time back, as rsync and some editors do.
func overwrite(path string, at int64, data string) Op {
	return Op{Verb: "overwrite", Path: path, N: at, Data: data}
}

func quiet(path string, at int64, data string) Op {
	return Op{Verb: "quiet", Path: path, N: at, Data: data}
}

// mapped writes through a shared mapping.
func mapped(path string, at int64, data string) Op {
	return Op{Verb: "mapped", Path: path, N: at, Data: data}
}

// dev is a device number as mknod(2) takes it, for numbers below 256.
func dev(major, minor int64) int64 { return major<<8 | minor }
