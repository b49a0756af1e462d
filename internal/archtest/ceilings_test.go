package archtest

import (
	"go/ast"
	"go/token"
	"testing"
)

// The ceilings that keep the program readable. Lines are counted whole, tests
// and their data are not counted.
const (
	maxPackages      = 32
	maxPackageLines  = 5000
	maxFileLines     = 800
	maxFunctionLines = 80
)

func TestCeilings(t *testing.T) {
	fset, pkgs := load(t)
	house := 0
	for _, p := range pkgs {
		if p.house() {
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
		if total > maxPackageLines {
			t.Errorf("%s: %d lines, want at most %d: find the second package in it", p.dir, total, maxPackageLines)
		}
	}
	if house > maxPackages {
		t.Errorf("%d packages below cmd and internal, want at most %d: join two that change together", house, maxPackages)
	}
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
