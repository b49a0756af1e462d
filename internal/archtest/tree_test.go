// Package archtest holds the rules of the house that a compiler does not know:
// who may import whom, how large things may grow, what must be written down.
// It has tests only. ARCHITECTURE.md and DEPENDENCIES.md state the rules for
// people; where they carry a table, the table is what is enforced.
//
// Each failure says what to do about it.
package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// module is the module path, which every import of ours begins with.
const module = "dhow"

// root is the top directory, seen from this package.
const root = "../.."

// A source is one parsed Go file that is not a test.
type source struct {
	path  string // slash path from the top directory
	file  *ast.File
	lines int
}

// A pkg is a directory of sources.
type pkg struct {
	dir     string // slash path from the top directory: "internal/sys"
	sources []source
}

// name is the package as the table in ARCHITECTURE.md writes it: without
// "internal/".
func (p pkg) name() string { return strings.TrimPrefix(p.dir, "internal/") }

// house says whether the package is part of the program; the rest are tools
// that are run with go run.
func (p pkg) house() bool {
	return strings.HasPrefix(p.dir, "internal/") || strings.HasPrefix(p.dir, "cmd/")
}

// imports returns the import paths of all sources, sorted, each once.
func (p pkg) imports(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, s := range p.sources {
		for _, spec := range s.file.Imports {
			ip, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatalf("%s: %v", s.path, err)
			}
			all = append(all, ip)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// load parses every package of the module that has a file which is not a test.
func load(t *testing.T) (*token.FileSet, []pkg) {
	t.Helper()
	fset := token.NewFileSet()
	byDir := map[string]*pkg{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			return skipDir(file, d.Name())
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		body, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if strings.HasPrefix(string(body), "//go:build ignore\n") {
			return nil // a generator, no part of its directory's package
		}
		parsed, err := parser.ParseFile(fset, file, body, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		slash := filepath.ToSlash(rel)
		dir := path.Dir(slash)
		if byDir[dir] == nil {
			byDir[dir] = &pkg{dir: dir}
		}
		byDir[dir].sources = append(byDir[dir].sources, source{slash, parsed, strings.Count(string(body), "\n")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []pkg
	for _, p := range byDir {
		all = append(all, *p)
	}
	slices.SortFunc(all, func(a, b pkg) int { return strings.Compare(a.dir, b.dir) })
	if len(all) < 10 {
		t.Fatalf("found %d packages below %s: the walk is broken, so every rule would pass", len(all), root)
	}
	return fset, all
}

// skipDir leaves out what is no source of this module: hidden directories,
// test data, other modules.
func skipDir(dir, name string) error {
	if dir == root {
		return nil
	}
	if strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" || name == "dist" {
		return filepath.SkipDir
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
		return filepath.SkipDir
	}
	return nil
}

func read(t *testing.T, name string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
