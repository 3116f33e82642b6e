package session

import (
	"slices"
	"strings"
	"testing"

	"deployx/snapshot"
)

// parseChanges reads "+a ~b -c !d *e a>b": added, modified, deleted, another
// type, metadata, renamed.
func parseChanges(t *testing.T, s string) (list []snapshot.Change) {
	kinds := map[byte]snapshot.ChangeKind{
		'+': snapshot.ChangeAdded, '~': snapshot.ChangeModified, '-': snapshot.ChangeDeleted,
		'!': snapshot.ChangeType, '*': snapshot.ChangeMetadata,
	}
	for f := range strings.FieldsSeq(s) {
		if from, to, ok := strings.Cut(f, ">"); ok {
			list = append(list, snapshot.Change{Path: to, From: from, Kind: snapshot.ChangeRenamed})
			continue
		}
		if kinds[f[0]] == "" {
			t.Fatalf("bad change %q", f)
		}
		list = append(list, snapshot.Change{Path: f[1:], Kind: kinds[f[0]]})
	}
	return list
}

func TestCollisions(t *testing.T) {
	for _, c := range []struct{ name, undone, others, want string }{
		{"nothing", "", "", ""},
		{"an upload beside a deploy", "~app.js -old.js", "+uploads/cat.png", ""},
		{"the same file", "~f", "~f", "f"},
		{"the same file, attributes only", "*f", "~f", "f"},
		{"made here, removed there", "+f", "-f", "f"},
		{"two files in one directory", "+d/a", "+d/b", ""},
		{"names that only begin alike", "+d +d/x", "+d.old/x +dd", ""},
		{"mode of a directory, file in it", "*d", "+d/upload", ""},
		{"file in a directory, mode of it", "~d/f", "*d", ""},
		{"mode of a directory twice", "*d", "*d", "d"},
		{"mode of the tree's root, files below", "*.", "+a ~b/c", ""},
		{"mode of the tree's root twice", "*.", "*. +a", "."},
		{"into a directory that goes", "+new +new/app", "+new/upload ~kept", "new/upload"},
		{"deep in a directory that goes", "+new +new/app", "+new/a +new/a/b", "new/a new/a/b"},
		{"a directory removed, made again by others", "-d -d/f", "+d +d/g", "d d/g"},
		{"a file became a directory", "!p +p/x", "+p/y", "p/y"},
		{"renamed, written at the new place", "a>b", "+b/upload", "b/upload"},
		{"renamed, written at the old place", "a>b", "+a +a/x", "a a/x"},
		{"renamed, mode changed", "a>b", "*b", "b"},
		{"renamed, beside both ends", "x/a>y/b", "+x/c +y/d *x", ""},
		{"renamed into a directory of others", "a>new/a", "+new +new/own", ""},
		{"others renamed what was changed", "~a/f", "a>b", "a"},
		{"others renamed, changed there after", "~b/f", "a>b", "b"},
		{"others renamed, beside", "~c/f *d", "d/a>d/b", ""},
		{"both renamed the same", "a>b", "b>c", "b"},
		{"others removed the directory", "+d/f", "-d", "d"},
		{"others made the directory another type", "~d/f", "!d", "d"},
		{"into a directory that others made", "+logs/deploy.log", "+logs +logs/access.log", ""},
		{"removed from a directory that others made", "-logs/a", "+logs +logs/a", "logs/a"},
		{"several, each once", "~f -d -d/x a>b", "~f +d/y +b/z *b ~ok", "b b/z d/y f"},
		{"bytes that are no text", "+d\xff +d\xff/x", "+d\xff/y", "d\xff/y"},
	} {
		t.Run(c.name, func(t *testing.T) {
			undone, others := parseChanges(t, c.undone), parseChanges(t, c.others)
			want := strings.Fields(c.want)
			if got := collisions(undone, others); !slices.Equal(got, want) {
				t.Errorf("undone %q, others %q: got %q, want %q", c.undone, c.others, got, want)
			}
			slices.Reverse(undone)
			slices.Reverse(others)
			if got := collisions(undone, others); !slices.Equal(got, want) {
				t.Errorf("in the other order: got %q, want %q", got, want)
			}
		})
	}
}
