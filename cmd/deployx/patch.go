package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	"deployx/session"
	"deployx/snapshot"
)

// patchLimit is the largest file whose lines are compared; a larger one is
// named as binary is.
const patchLimit = 8 << 20

// patch prints the changes as git does, which patch(1) 2.7 and later takes.
func (a *app) patch(ctx context.Context, c session.Comparison) error {
	return c.Changes(ctx, func(ch snapshot.Change) error {
		switch {
		case ch.Kind == snapshot.ChangeRenamed:
			_, err := fmt.Fprintf(a.out, "Renamed directory %s to %s\n", printable(ch.From), printable(ch.Path))
			return err
		case ch.Type == snapshot.TypeDir:
			return nil // a patch makes and removes directories by the files in them
		case ch.Kind == snapshot.ChangeMetadata, ch.Kind == snapshot.ChangeType:
			_, err := fmt.Fprintf(a.out, "Changed %s of %s\n", what(ch.Kind), printable(ch.Path))
			return err
		case ch.Type != snapshot.TypeFile:
			_, err := fmt.Fprintf(a.out, "Special file %s %s\n", printable(ch.Path), ch.Kind)
			return err
		}
		return a.patchFile(ctx, c, ch)
	})
}

func what(k snapshot.ChangeKind) string {
	if k == snapshot.ChangeType {
		return "type"
	}
	return "metadata"
}

func (a *app) patchFile(ctx context.Context, c session.Comparison, ch snapshot.Change) error {
	var before, after []byte
	var err error
	oldName, newName := quoteName("a/"+ch.Path), quoteName("b/"+ch.Path)
	header := fmt.Sprintf("diff --git %s %s\n", oldName, newName)
	if ch.Kind == snapshot.ChangeAdded {
		header += fmt.Sprintf("new file mode 100%03o\n", ch.Mode)
		oldName = "/dev/null"
	} else if before, err = readLimited(c.Before(ctx, ch.Path)); err != nil {
		return err
	}
	if ch.Kind == snapshot.ChangeDeleted {
		header += fmt.Sprintf("deleted file mode 100%03o\n", ch.Mode)
		newName = "/dev/null"
	} else if after, err = readLimited(c.After(ctx, ch.Path)); err != nil {
		return err
	}
	if !text2(before) || !text2(after) {
		_, err = fmt.Fprintf(a.out, "%sBinary files %s and %s differ\n", header, oldName, newName)
		return err
	}
	d := diff.Diff(oldName, before, newName, after)
	if i := bytes.Index(d, []byte("\n--- ")); i >= 0 {
		d = d[i+1:] // without the library's own header
	}
	_, err = fmt.Fprintf(a.out, "%s%s", header, d)
	return err
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
