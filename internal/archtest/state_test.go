package archtest

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// initAllowed has the one package that may run code before main: the
// container-side half of the sandbox takes over the process there, long before
// the other packages initialise.
const initAllowed = "internal/sandbox/stage"

func TestNoInit(t *testing.T) {
	fset, pkgs := load(t)
	for _, p := range pkgs {
		if p.dir == initAllowed {
			continue
		}
		for _, s := range p.sources {
			for _, decl := range s.file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
					t.Errorf("%s: init runs in every command, whether it is needed or not: call it from main or from a constructor", fset.Position(f.Pos()))
				}
			}
		}
	}
}

// TestNoPackageState allows package variables that are set once and are facts:
// sentinel errors, compiled patterns, tables, embedded files, values computed
// at first use. Everything else is state, and state has an owner.
func TestNoPackageState(t *testing.T) {
	fset, pkgs := load(t)
	for _, p := range pkgs {
		vars := map[string]*ast.ValueSpec{}
		for _, s := range p.sources {
			for _, decl := range s.file.Decls {
				group, ok := decl.(*ast.GenDecl)
				if !ok || group.Tok != token.VAR {
					continue
				}
				for _, spec := range group.Specs {
					v := spec.(*ast.ValueSpec)
					for i, name := range v.Names {
						if name.Name == "_" {
							continue
						}
						vars[name.Name] = v
						if !isFact(group, v, i, p.dir) {
							t.Errorf("%s: package variable %s may be state: make it a constant, a function's local or a field of what owns it", fset.Position(name.Pos()), name.Name)
						}
					}
				}
			}
		}
		for _, s := range p.sources {
			for _, pos := range writes(s.file, vars) {
				t.Errorf("%s: a package variable is written here: give it to a value that is passed around", fset.Position(pos))
			}
		}
	}
}

// isFact says whether the i-th variable of v starts as something that nobody
// needs to change later.
func isFact(group *ast.GenDecl, v *ast.ValueSpec, i int, dir string) bool {
	if embedded(group.Doc) || embedded(v.Doc) {
		return true
	}
	if len(v.Values) == 0 {
		// The linker sets the version (-ldflags -X).
		return dir == "cmd/dhow" && slices.Contains([]string{"version", "commit"}, v.Names[i].Name)
	}
	if i >= len(v.Values) {
		return false
	}
	switch value := v.Values[i].(type) {
	case *ast.CompositeLit, *ast.FuncLit, *ast.BasicLit, *ast.SelectorExpr, *ast.BinaryExpr:
		return true
	case *ast.UnaryExpr:
		_, literal := value.X.(*ast.CompositeLit)
		return value.Op != token.AND || literal
	case *ast.CallExpr:
		return factCall(value)
	}
	return false
}

// factCall lists the calls that compute a fact.
func factCall(call *ast.CallExpr) bool {
	fun := call.Fun
	if index, ok := fun.(*ast.IndexExpr); ok {
		fun = index.X
	}
	switch f := fun.(type) {
	case *ast.ArrayType: // []byte("…")
		return true
	case *ast.SelectorExpr:
		pkg, ok := f.X.(*ast.Ident)
		if !ok {
			return false
		}
		switch pkg.Name + "." + f.Sel.Name {
		case "errors.New", "errdef.New", "errdef.WithHint", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "sync.OnceValue", "sync.OnceValues",
			"template.Must", "time.Unix", "sha256.Sum256", "crc32.MakeTable", "netip.MustParseAddr", "netip.MustParsePrefix", "digest.FromString", "digest.FromBytes":
			return true
		}
	}
	return false
}

func embedded(doc *ast.CommentGroup) bool {
	if doc == nil {
		return false
	}
	return slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}

// writes returns where the file assigns to one of the package's variables, or
// takes the address of one.
func writes(file *ast.File, vars map[string]*ast.ValueSpec) []token.Pos {
	var found []token.Pos
	check := func(e ast.Expr) {
		if id := rootIdent(e); id != nil && isPackageVar(id, vars) {
			found = append(found, e.Pos())
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, e := range n.Lhs {
					check(e)
				}
			}
		case *ast.IncDecStmt:
			check(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				check(n.X)
			}
		case *ast.CallExpr:
			if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
				check(n.Args[0])
			}
		}
		return true
	})
	return found
}

// isPackageVar tells a package variable from a local of the same name: the
// parser resolves an identifier to its declaration within the file, and leaves
// alone what another file declares.
func isPackageVar(id *ast.Ident, vars map[string]*ast.ValueSpec) bool {
	spec, ok := vars[id.Name]
	if !ok {
		return false
	}
	return id.Obj == nil || id.Obj.Decl == spec
}

// rootIdent returns x of x, x.f, x[i], *x and of their combinations.
func rootIdent(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}
