package archtest

import (
	"go/ast"
	"path"
	"strings"
	"testing"
)

// maxArchitectureLines keeps ARCHITECTURE.md a map.
const maxArchitectureLines = 200

func TestPackagesAreDocumented(t *testing.T) {
	_, pkgs := load(t)
	for _, p := range pkgs {
		var docs []string
		for _, s := range p.sources {
			if s.file.Doc != nil {
				docs = append(docs, s.path)
			}
		}
		switch {
		case len(docs) == 0:
			t.Errorf("%s has no package comment: say what it is, what it is not, and its invariant", p.dir)
		case len(docs) > 1:
			t.Errorf("%s has more than one package comment (%s): keep one", p.dir, strings.Join(docs, ", "))
		}
		switch base := path.Base(p.dir); base {
		case "util", "utils", "common", "types", "helpers", "misc", "shared", "base":
			t.Errorf("%s: a package is named for what it holds, and %q holds anything", p.dir, base)
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	fset, pkgs := load(t)
	for _, p := range pkgs {
		for _, s := range p.sources {
			for _, decl := range s.file.Decls {
				for _, name := range undocumented(decl) {
					t.Errorf("%s: %s has no comment", fset.Position(decl.Pos()), name)
				}
			}
		}
	}
}

// undocumented returns the exported names that decl declares without a
// comment. One comment above a group of constants or variables is enough.
func undocumented(decl ast.Decl) []string {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Doc != nil || !d.Name.IsExported() || (d.Recv != nil && (!exportedReceiver(d) || satisfiesStd(d.Name.Name))) {
			return nil
		}
		return []string{d.Name.Name}
	case *ast.GenDecl:
		if d.Doc != nil {
			return nil
		}
		var names []string
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Doc == nil && s.Name.IsExported() {
					names = append(names, s.Name.Name)
				}
			case *ast.ValueSpec:
				if s.Doc == nil && s.Comment == nil && s.Names[0].IsExported() {
					names = append(names, s.Names[0].Name)
				}
			}
		}
		return names
	}
	return nil
}

// satisfiesStd says whether the method is one that everybody knows from the
// standard library, where a comment could only repeat its name.
func satisfiesStd(method string) bool {
	switch method {
	case "Error", "Unwrap", "Is", "As", "String", "Read", "Write", "Close", "MarshalJSON", "UnmarshalJSON", "Len", "Less", "Swap":
		return true
	}
	return false
}

func exportedReceiver(f *ast.FuncDecl) bool {
	typ := f.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if index, ok := typ.(*ast.IndexExpr); ok {
		typ = index.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

func TestArchitectureStaysAMap(t *testing.T) {
	if n := strings.Count(read(t, "ARCHITECTURE.md"), "\n"); n > maxArchitectureLines {
		t.Errorf("ARCHITECTURE.md has %d lines, want at most %d: move detail to the package comment it belongs to", n, maxArchitectureLines)
	}
}
