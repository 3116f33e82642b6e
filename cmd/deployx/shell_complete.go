package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"deployx/shell"
)

// complete is liner's: of the word that ends at pos it gives what it could
// become.
func (i *interactive) complete(line string, pos int) (head string, words []string, tail string) {
	runes := []rune(line)
	before, tail := string(runes[:pos]), string(runes[pos:])
	if strings.HasPrefix(before, ":") && !strings.Contains(before, " ") {
		return ":", prefixed(metaNames, before[1:]), tail
	}
	w := lastWord(before)
	head = before[:w.start]
	if strings.HasPrefix(before, ":") {
		return head, i.completeSnapshot(w.text), tail
	}
	if w.first && w.quote == 0 && !strings.Contains(w.text, "/") {
		return head, append(i.files(w), commands(w.text)...), tail
	}
	return head, i.files(w), tail
}

func prefixed(names []string, prefix string) (found []string) {
	for _, n := range names {
		if strings.HasPrefix(n, prefix) {
			found = append(found, n+" ")
		}
	}
	return found
}

func (i *interactive) completeSnapshot(prefix string) (ids []string) {
	_, rec, err := i.app.recordOf(i.tree)
	if err != nil {
		return nil
	}
	all, err := rec.All()
	if err != nil {
		return nil
	}
	for _, id := range slices.Backward(all) {
		if strings.HasPrefix(string(id), prefix) {
			ids = append(ids, short(id))
		}
	}
	return ids
}

// word is the unfinished last word of a line.
type word struct {
	start int    // where it begins, in bytes
	text  string // without its quotes
	quote rune   // the quote that is open, or 0
	first bool   // it stands where a command does
}

// lastWord reads a line as a shell does, as far as quoting goes.
func lastWord(line string) word {
	w := word{first: true}
	var text strings.Builder
	escaped, any := false, false
	for at, r := range line {
		switch {
		case escaped:
			escaped = false
			text.WriteRune(r)
		case r == '\\' && w.quote != '\'':
			escaped, any = true, true
		case w.quote != 0:
			if r == w.quote {
				w.quote = 0
			} else {
				text.WriteRune(r)
			}
		case r == '\'' || r == '"':
			w.quote, any = r, true
		case strings.ContainsRune(" \t;|&()<>=", r):
			w.first = strings.ContainsRune(";|&(", r) || w.first && !any && strings.ContainsRune(" \t", r)
			w.start, any = at+utf8.RuneLen(r), false
			text.Reset()
		default:
			any = true
			text.WriteRune(r)
		}
	}
	w.text = text.String()
	return w
}

// files completes a path from where the tree's shell is.
func (i *interactive) files(w word) (found []string) {
	dir, prefix := filepath.Split(w.text)
	place := dir
	if rest, ok := strings.CutPrefix(place, "~/"); ok && w.quote == 0 {
		place = filepath.Join(home(), rest)
	}
	if !filepath.IsAbs(place) {
		place = filepath.Join(i.dir, place)
	}
	entries, err := os.ReadDir(place)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		name := e.Name()
		hidden := name[0] == '.' && !strings.HasPrefix(prefix, ".")
		if !strings.HasPrefix(name, prefix) || hidden || !typable(name) {
			continue
		}
		end := " "
		if fi, err := os.Stat(filepath.Join(place, name)); err == nil && fi.IsDir() {
			end = "/"
		}
		found = append(found, typed(dir+name, w.quote, end))
	}
	return found
}

func home() string {
	for _, e := range shell.CleanEnv(shell.EnvOptions{}) {
		if h, ok := strings.CutPrefix(e, "HOME="); ok {
			return h
		}
	}
	return "/"
}

// typable holds for names that can stand on an edited line.
func typable(name string) bool {
	return utf8.ValidString(name) && !strings.ContainsFunc(name, func(r rune) bool { return unicode.Is(unicode.C, r) })
}

// typed is a word as a person would type it, in the quotes that are open.
func typed(name string, quote rune, end string) string {
	closing := end
	if quote != 0 && end == " " {
		closing = string(quote) + " "
	}
	switch quote {
	case '\'':
		return "'" + strings.ReplaceAll(name, "'", `'\''`) + closing
	case '"':
		return `"` + escape(name, "\"$`\\") + closing
	}
	if rest, ok := strings.CutPrefix(name, "~/"); ok {
		return "~/" + escape(rest, special) + end
	}
	return escape(name, special) + end
}

const special = " \t!\"#$&'()*;<=>?[\\]^`{|}~"

func escape(s, chars string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune(chars, r) {
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// commands are the programs that begin with prefix.
func commands(prefix string) (found []string) {
	if prefix == "" {
		return nil
	}
	for _, dir := range filepath.SplitList(shell.DefaultPath) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), prefix) && !slices.Contains(found, e.Name()+" ") {
				found = append(found, e.Name()+" ")
			}
		}
	}
	slices.Sort(found)
	return found
}
