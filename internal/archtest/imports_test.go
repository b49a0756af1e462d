package archtest

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// maxChain is the longest allowed path of imports inside the module.
const maxChain = 12

// A row is one line of the imports block: a package and what it imports.
type row struct {
	name    string
	imports []string
}

// table reads the ```imports block of ARCHITECTURE.md, bottom package first.
func table(t *testing.T) []row {
	t.Helper()
	_, rest, ok := strings.Cut(read(t, "ARCHITECTURE.md"), "\n```imports\n")
	if !ok {
		t.Fatal("ARCHITECTURE.md has no ```imports block")
	}
	block, _, ok := strings.Cut(rest, "\n```")
	if !ok {
		t.Fatal("ARCHITECTURE.md: the ```imports block does not end")
	}
	var rows []row
	for line := range strings.Lines(block) {
		name, list, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			t.Fatalf("ARCHITECTURE.md: imports line %q, want \"package: package …\"", strings.TrimSpace(line))
		}
		rows = append(rows, row{name, strings.Fields(list)})
	}
	return rows
}

// own returns what p imports of this module, as the table names it.
func own(t *testing.T, p pkg) []string {
	t.Helper()
	var names []string
	for _, ip := range p.imports(t) {
		if dir, ok := strings.CutPrefix(ip, module+"/"); ok {
			names = append(names, strings.TrimPrefix(dir, "internal/"))
		}
	}
	return names
}

func TestImportTableIsExact(t *testing.T) {
	_, pkgs := load(t)
	rows := table(t)
	at := map[string]int{}
	for i, r := range rows {
		if _, twice := at[r.name]; twice {
			t.Errorf("ARCHITECTURE.md: %s stands twice in the imports block", r.name)
		}
		at[r.name] = i
	}
	// The table keeps each list in the order of the table itself.
	inOrder := func(names []string) string {
		slices.SortFunc(names, func(a, b string) int { return at[a] - at[b] })
		return strings.Join(names, " ")
	}
	seen := map[string]bool{}
	for _, p := range pkgs {
		if !p.house() {
			continue
		}
		seen[p.name()] = true
		i, ok := at[p.name()]
		if !ok {
			t.Errorf("package %s is not in ARCHITECTURE.md: give it a line in the imports block, below all it imports: %s", p.name(), strings.Join(own(t, p), " "))
			continue
		}
		for _, name := range own(t, p) {
			j, ok := at[name]
			if ok && j >= i {
				t.Errorf("%s imports %s, which does not stand above it in ARCHITECTURE.md: turn the import around, or declare the smallest interface in %s", p.name(), name, p.name())
			}
		}
		if got, want := inOrder(own(t, p)), strings.Join(rows[i].imports, " "); got != want {
			t.Errorf("ARCHITECTURE.md, imports block: got %q for %s, want %q: take the import back, or, when it is meant, change the line", want, p.name(), got)
		}
	}
	for _, r := range rows {
		if !seen[r.name] {
			t.Errorf("ARCHITECTURE.md lists package %s, which does not exist: remove the line", r.name)
		}
	}
}

func TestImportChain(t *testing.T) {
	_, pkgs := load(t)
	imports := map[string][]string{}
	for _, p := range pkgs {
		imports[p.name()] = own(t, p)
	}
	longest := map[string][]string{}
	var chain func(name string) []string
	chain = func(name string) []string {
		if c, ok := longest[name]; ok {
			return c
		}
		var below []string
		for _, next := range imports[name] {
			if c := chain(next); len(c) > len(below) {
				below = c
			}
		}
		longest[name] = append([]string{name}, below...)
		return longest[name]
	}
	for _, p := range pkgs {
		if c := chain(p.name()); len(c) > maxChain {
			t.Errorf("import chain of %d packages, want at most %d: %s", len(c), maxChain, strings.Join(c, " → "))
		}
	}
}

// A ban keeps an implementation out that this project replaces.
type ban struct {
	prefix string
	why    string
}

// Whom a source file may not import, and whom the program may not even link.
// The Dockerfile frontend links the package buildkit/solver for its types,
// which is why that one is only in the first list.
func bans() (direct, linked []ban) {
	linked = []ban{
		{"github.com/moby/buildkit/worker", "the engine is ours: internal/solve, internal/buildop"},
		{"github.com/moby/buildkit/cache", "the cache is ours: internal/solve, internal/store"},
		{"github.com/moby/buildkit/snapshot", "snapshots are ours: internal/snapshot"},
		{"github.com/moby/buildkit/executor/oci", "steps run in internal/sandbox"},
		{"github.com/moby/buildkit/executor/runcexecutor", "steps run in internal/sandbox"},
		{"github.com/moby/buildkit/executor/containerdexecutor", "steps run in internal/sandbox"},
		{"github.com/moby/buildkit/solver/llbsolver/ops", "operations are ours: internal/buildop"},
		{"github.com/moby/buildkit/exporter/containerimage/writer", "results are written by internal/export"},
		{"github.com/containerd/containerd/v2/plugins/snapshots", "snapshots are ours: internal/snapshot"},
		{"github.com/containerd/containerd/v2/client", "there is no daemon to talk to"},
		{"github.com/containerd/go-runc", "the sandbox is ours: internal/sandbox"},
		{"github.com/opencontainers/runc", "the sandbox is ours: internal/sandbox"},
		{"github.com/seccomp/libseccomp-golang", "cgo; profiles are compiled by internal/sandbox"},
		{"github.com/mattn/go-sqlite3", "cgo; records are kept through zombiezen.com/go/sqlite"},
	}
	direct = append([]ban{
		{"github.com/moby/buildkit/executor", "steps run in internal/sandbox"},
		{"github.com/moby/buildkit/solver", "graphs are run by internal/solve; the vocabulary (pb, errdefs, result, provenance types) is allowed"},
		{"github.com/containerd/containerd/v2/core/snapshots", "snapshots are ours: internal/snapshot"},
		{"github.com/containerd/containerd/v2/core/mount", "mounts are internal/sys"},
		{"reflect", "say what the types are"},
		{"C", "the binary is static: CGO_ENABLED=0"},
	}, linked...)
	return direct, linked
}

// broken returns the first ban that the import path falls under.
func broken(bans []ban, importPath string) (ban, bool) {
	for _, words := range []string{"pb", "errdefs", "result", "llbsolver/provenance/types"} {
		if importPath == "github.com/moby/buildkit/solver/"+words {
			return ban{}, false
		}
	}
	i := slices.IndexFunc(bans, func(b ban) bool {
		return importPath == b.prefix || strings.HasPrefix(importPath, b.prefix+"/")
	})
	if i < 0 {
		return ban{}, false
	}
	return bans[i], true
}

func TestForbiddenImports(t *testing.T) {
	_, pkgs := load(t)
	direct, linked := bans()
	for _, p := range pkgs {
		if !p.house() {
			continue
		}
		for _, ip := range p.imports(t) {
			if b, ok := broken(direct, ip); ok {
				t.Errorf("%s imports %s: %s", p.dir, ip, b.why)
			}
		}
	}
	cmd := exec.Command("go", "list", "-deps", "./cmd/dhow")
	cmd.Dir = root
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps ./cmd/dhow: %v", err)
	}
	for ip := range strings.Lines(string(out)) {
		if b, ok := broken(linked, strings.TrimSpace(ip)); ok {
			t.Errorf("cmd/dhow links %s: %s (go mod why -m tells through whom)", strings.TrimSpace(ip), b.why)
		}
	}
}
