package archtest

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// The ceilings that keep the program readable. Lines are counted whole, tests
// and their data are not counted. Log drivers are counted apart: they are many,
// alike and small, and who knows logs/driver knows them.
const (
	maxPackages      = 45
	maxDrivers       = 12
	maxDriverLines   = 1000
	maxPackageLines  = 5000
	maxFileLines     = 800
	maxFunctionLines = 80
)

func TestCeilings(t *testing.T) {
	fset, pkgs := load(t)
	house, drivers := 0, 0
	for _, p := range pkgs {
		limit := maxPackageLines
		switch {
		case p.driver():
			drivers++
			limit = maxDriverLines
		case p.house():
			house++
		}
		total := 0
		for _, s := range p.sources {
			total += s.lines
			if s.lines > maxFileLines {
				t.Errorf("%s: %d lines, want at most %d: split it by what its parts are about", s.path, s.lines, maxFileLines)
			}
			functions(fset, s, func(name string, lines int) {
				if lines > maxFunctionLines {
					t.Errorf("%s: %s has %d lines, want at most %d: name its parts", s.path, name, lines, maxFunctionLines)
				}
			})
		}
		if total > limit {
			t.Errorf("%s: %d lines, want at most %d: find the second package in it", p.dir, total, limit)
		}
	}
	if house > maxPackages {
		t.Errorf("%d packages below cmd and internal, want at most %d: join two that change together", house, maxPackages)
	}
	if drivers > maxDrivers {
		t.Errorf("%d log drivers, want at most %d: let a plugin do it", drivers, maxDrivers)
	}
}

// driver says whether the package is one of the log drivers.
func (p pkg) driver() bool {
	return strings.HasPrefix(p.dir, "internal/logs/") && p.dir != "internal/logs/driver"
}

// functions reports each function of the file with its number of lines.
func functions(fset *token.FileSet, s source, report func(name string, lines int)) {
	for _, decl := range s.file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok {
			continue
		}
		report(f.Name.Name, fset.Position(f.End()).Line-fset.Position(f.Pos()).Line+1)
	}
}
