package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"golang.org/x/sys/unix"

	"deployx/session"
	"deployx/snapshot"
)

// patchLimit is the largest file whose lines are compared; a larger one is
// named as binary is.
const patchLimit = 8 << 20

// patch prints the changes as git does, which patch(1) 2.7 and later takes, and in
// words what that cannot do. It knows no renamed directories: they are told, and what
// was in them goes and comes.
func (a *app) patch(ctx context.Context, c session.Comparison) error {
	err := c.Renames(ctx, func(ch snapshot.Change) error {
		return a.put("Renamed directory %s to %s\n", printable(ch.From), printable(ch.Path))
	})
	if err != nil {
		return err
	}
	return c.ByPath(ctx, func(ch snapshot.Change) error {
		switch {
		case ch.Kind == snapshot.ChangeType:
			return a.patchType(ctx, c, ch)
		case ch.Type == snapshot.TypeDir:
			return nil // a patch makes and removes directories by the files in them
		case ch.Kind == snapshot.ChangeMetadata:
			return a.put("Changed metadata of %s\n", printable(ch.Path))
		case ch.Type != snapshot.TypeFile:
			return a.put("Special file %s %s\n", printable(ch.Path), ch.Kind)
		}
		return a.patchFile(ctx, c, ch)
	})
}

// patchType prints what went, if it was a file, and what came. A link goes as well, for
// patch puts no file in its place; it takes no directory's either, nor the reverse.
func (a *app) patchType(ctx context.Context, c session.Comparison, ch snapshot.Change) error {
	hint := ""
	switch ch.Was + ch.Type {
	case snapshot.TypeDir + snapshot.TypeFile, snapshot.TypeFile + snapshot.TypeDir:
		hint = ", which git apply does and patch does not"
	}
	if err := a.put("Changed type of %s from %s to %s%s\n", printable(ch.Path), typeWords[ch.Was], typeWords[ch.Type], hint); err != nil {
		return err
	}
	was, is := ch, ch
	was.Kind, was.Type, was.Mode = snapshot.ChangeDeleted, ch.Was, 0o644
	is.Kind = snapshot.ChangeAdded
	if was.Type == snapshot.TypeFile || was.Type == snapshot.TypeSymlink {
		if err := a.patchFile(ctx, c, was); err != nil {
			return err
		}
	}
	if is.Type != snapshot.TypeFile {
		return nil
	}
	return a.patchFile(ctx, c, is)
}

var typeWords = map[snapshot.FileType]string{
	snapshot.TypeFile: "file", snapshot.TypeDir: "directory", snapshot.TypeSymlink: "symbolic link",
	snapshot.TypeFifo: "fifo", snapshot.TypeSocket: "socket", snapshot.TypeChar: "character device", snapshot.TypeBlock: "block device",
}

// patchFile prints one file's lines, or that they were never copied.
func (a *app) patchFile(ctx context.Context, c session.Comparison, ch snapshot.Change) error {
	err := a.patchLines(ctx, c, ch)
	if errors.Is(err, snapshot.ErrNotCopied) {
		return a.put("File %s %s: %v\n", printable(ch.Path), ch.Kind, snapshot.ErrNotCopied)
	}
	return err
}

func (a *app) patchLines(ctx context.Context, c session.Comparison, ch snapshot.Change) error {
	var before, after []byte
	var err error
	oldName, newName := quoteName("a/"+ch.Path), quoteName("b/"+ch.Path)
	header := fmt.Sprintf("diff --git %s %s\n", oldName, newName)
	if ch.Kind == snapshot.ChangeAdded {
		header += fmt.Sprintf("new file mode %o\n", gitMode(ch))
		oldName = "/dev/null"
	} else if before, err = readLimited(c.Before(ctx, ch.Path)); err != nil {
		return err
	}
	if ch.Kind == snapshot.ChangeDeleted {
		header += fmt.Sprintf("deleted file mode %o\n", gitMode(ch))
		newName = "/dev/null"
	} else if after, err = readLimited(c.After(ctx, ch.Path)); err != nil {
		return err
	}
	switch {
	case !text2(before) || !text2(after): // below a header patch would make it, empty, or delete it
		return a.put("Binary files %s and %s differ\n", oldName, newName)
	case ch.Kind == snapshot.ChangeDeleted && len(before) == 0: // patch would ask whether it is reversed
		return a.put("Empty file %s deleted\n", printable(ch.Path))
	}
	d := diff.Diff(oldName, before, newName, after)
	if i := bytes.Index(d, []byte("\n--- ")); i >= 0 {
		d = d[i+1:] // without the library's own header
	}
	return a.put("%s%s", header, d)
}

func (a *app) put(format string, args ...any) error {
	_, err := fmt.Fprintf(a.out, format, args...)
	return err
}

// gitMode is what git knows of a mode.
func gitMode(ch snapshot.Change) uint32 {
	if ch.Type == snapshot.TypeSymlink {
		return unix.S_IFLNK
	}
	return unix.S_IFREG | ch.Mode&0o777
}

func readLimited(r io.ReadCloser, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer r.Close() //nolint:errcheck // read only
	return io.ReadAll(io.LimitReader(r, patchLimit+1))
}

// text2 tells text from binary as git does: by a NUL in the first 8,000 bytes.
func text2(b []byte) bool {
	return len(b) <= patchLimit && bytes.IndexByte(b[:min(len(b), 8000)], 0) < 0
}

// quoteName quotes as git does, in C's way, names with special bytes.
func quoteName(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' || r > '~' }) < 0 && !strings.Contains(s, " ") {
		return s
	}
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(s) {
		switch {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~':
			fmt.Fprintf(&b, "\\%03o", c)
		default:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
