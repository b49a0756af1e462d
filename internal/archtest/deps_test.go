package archtest

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// required returns the modules of go.mod.
func required(t *testing.T) []string {
	t.Helper()
	var modules []string
	for line := range strings.Lines(read(t, "go.mod")) {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(fields) >= 2 && strings.Contains(fields[0], ".") && strings.HasPrefix(fields[1], "v") {
			modules = append(modules, fields[0])
		}
	}
	if len(modules) == 0 {
		t.Fatal("go.mod: found no required module")
	}
	return modules
}

// moduleOf returns the module that provides the import path, or "" for the
// standard library and this module.
func moduleOf(modules []string, importPath string) string {
	longest := ""
	for _, m := range modules {
		if (importPath == m || strings.HasPrefix(importPath, m+"/")) && len(m) > len(longest) {
			longest = m
		}
	}
	return longest
}

func TestDependenciesAreExplained(t *testing.T) {
	_, pkgs := load(t)
	modules := required(t)
	used := map[string]string{}
	for _, p := range pkgs {
		for _, ip := range p.imports(t) {
			if m := moduleOf(modules, ip); m != "" {
				used[m] = p.dir
			}
		}
	}
	listed := map[string]bool{}
	for _, match := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllStringSubmatch(read(t, "DEPENDENCIES.md"), -1) {
		listed[match[1]] = true
	}
	for _, m := range slices.Sorted(maps.Keys(used)) {
		if !listed[m] {
			t.Errorf("%s imports a package of %s, which has no line in DEPENDENCIES.md: say why it, and what it would cost to drop, or do without", used[m], m)
		}
	}
	for _, m := range slices.Sorted(maps.Keys(listed)) {
		if used[m] == "" && !testOnly(m) {
			t.Errorf("DEPENDENCIES.md explains %s, which no package imports: remove the line", m)
		}
	}
}

// testOnly has the modules that only tests import.
func testOnly(module string) bool {
	switch module {
	case "github.com/google/go-cmp", "github.com/rogpeppe/go-internal":
		return true
	}
	return false
}
