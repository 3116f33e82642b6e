// Package crashtest kills a test's process at a crash point, and finds the points that
// no test was killed at.
//
// It is for tests, and for what looks after them.
package crashtest

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// EnvKilled names a file that takes the names of the points that were died at, one a
// line. Without it they are not noted.
const EnvKilled = "DEPLOYX_TEST_KILLED"

// Die kills this process at a point.
func Die(point string) {
	if name := os.Getenv(EnvKilled); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			_, err = fmt.Fprintln(f, point)
		}
		if err != nil {
			panic(err)
		}
	}
	panic(fmt.Sprint("outlived SIGKILL: ", unix.Kill(os.Getpid(), unix.SIGKILL)))
}

// Points finds the names of all crash points below root, with the places of each. One
// of which only the beginning is written in the code ends in "*".
func Points(root string) (map[string][]string, error) {
	points := map[string][]string{}
	err := filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok && isPoint(call) {
				at := set.Position(call.Pos()).String()
				points[named(call.Args[0])] = append(points[named(call.Args[0])], at)
			}
			return true
		})
		return nil
	})
	return points, err
}

func isPoint(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || f.Sel.Name != "Point" || len(call.Args) != 1 {
		return false
	}
	pkg, ok := f.X.(*ast.Ident)
	return ok && pkg.Name == "crash"
}

// named is the name that an expression gives, as far as it is a literal.
func named(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if s, err := strconv.Unquote(e.Value); err == nil {
			return s
		}
	case *ast.BinaryExpr:
		return strings.TrimSuffix(named(e.X), "*") + "*"
	}
	return "*"
}

// Unkilled are the points below root that the file killed, of EnvKilled, does not
// have, with their places.
func Unkilled(root, killed string) (left []string, err error) {
	points, err := Points(root)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(killed)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // only read
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		for p := range points {
			if begin, ok := strings.CutSuffix(p, "*"); p == lines.Text() || ok && strings.HasPrefix(lines.Text(), begin) {
				delete(points, p)
			}
		}
	}
	for p, at := range points {
		left = append(left, fmt.Sprintf("%s: %s", strings.Join(at, " "), p))
	}
	slices.Sort(left)
	return left, lines.Err()
}
