package buildcontext

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func explain(t *testing.T, dir string) Explanation {
	t.Helper()
	rules, err := LoadIgnore(dir, "")
	must(t, err)
	e, err := Explain(context.Background(), dir, rules)
	must(t, err)
	return e
}

func text(t *testing.T, e Explanation) string {
	t.Helper()
	var b bytes.Buffer
	must(t, e.WriteText(&b))
	return b.String()
}

func TestExplainText(t *testing.T) {
	dir := files(t, map[string]string{
		".dockerignore": "# what the image does not need\nnode_modules\n*.env\n**/*.md\n!docs/README.md\n*.foo\nlogs\n!logs/keep/*\n",
		"Dockerfile":    "FROM scratch\n", "docs/README.md": strings.Repeat("r", 1500), "docs/b.md": "b", "empty/": "",
		"link": "-> src/a.go", "node_modules/x/y.js": "y", "secrets.env": "KEY", "src/a.go": "package a\n",
		"logs/today.log": "l", "logs/keep/this": "k", "logs/other/that": "t", "odd\x1b[31m": "",
	})
	want := `Build context DIR, rules from .dockerignore

used          98 B  .dockerignore
used          13 B  Dockerfile
used        1.5 kB  docs/README.md    .dockerignore:5  !docs/README.md
ignored        1 B  docs/b.md         .dockerignore:4  **/*.md
used                empty/
used                link -> src/a.go
used           1 B  logs/keep/this    .dockerignore:8  !logs/keep/*
skipped             logs/other/       .dockerignore:7  logs
ignored        1 B  logs/today.log    .dockerignore:7  logs
skipped             node_modules/     .dockerignore:2  node_modules
used           0 B  "odd\x1b[31m"
ignored        3 B  secrets.env       .dockerignore:3  *.env
used          10 B  src/a.go

Used:     6 files, 5 directories, 1 link, 1.62 kB
Ignored:  3 files, 5 B
Skipped:  2 directories never entered

Rules that decided nothing:
  .dockerignore:6  *.foo
`
	got := strings.Replace(text(t, explain(t, dir)), dir, "DIR", 1)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("text (-want +got):\n%s", d)
	}
}

func TestExplainShowsTheLargest(t *testing.T) {
	content := map[string]string{}
	for i := range 12 {
		content[fmt.Sprintf("f%02d", i)] = strings.Repeat("x", 100*i)
	}
	got := text(t, explain(t, files(t, content)))
	want := "Largest files used:\n   1.1 kB  f11\n     1 kB  f10\n    900 B  f09\n    800 B  f08\n    700 B  f07\n"
	if !strings.HasSuffix(got, want) || !strings.Contains(got, "no ignore file") {
		t.Errorf("got:\n%s\nwant at its end:\n%s", got, want)
	}
}

func TestExplainJSON(t *testing.T) {
	e := explain(t, files(t, map[string]string{".dockerignore": "b\nc\n", "a": "1", "b": "22", "l": "-> a"}))
	var b bytes.Buffer
	must(t, e.WriteJSON(&b))
	var got map[string]any
	must(t, json.Unmarshal(b.Bytes(), &got))
	item := func(path, kind, state string, size float64) map[string]any {
		return map[string]any{"path": path, "type": kind, "state": state, "size": size}
	}
	ignored, link := item("b", "file", "ignored", 2), item("l", "link", "used", 0)
	ignored["rule"] = map[string]any{"file": ".dockerignore", "line": 1.0, "pattern": "b"}
	link["target"] = "a"
	want := map[string]any{
		"directory": e.Dir, "ignoreFile": ".dockerignore",
		"items":     []any{item(".dockerignore", "file", "used", 4), item("a", "file", "used", 1), ignored, link},
		"idleRules": []any{map[string]any{"file": ".dockerignore", "line": 2.0, "pattern": "c"}},
		"totals": map[string]any{
			"files": 2.0, "directories": 0.0, "links": 1.0, "other": 0.0, "bytes": 5.0,
			"ignoredFiles": 1.0, "ignoredBytes": 2.0, "skippedDirectories": 0.0, "sockets": 0.0,
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("JSON (-want +got):\n%s", d)
	}
}

// TestExplainAgreesWithScan: what one says is used, the other finds.
func TestExplainAgreesWithScan(t *testing.T) {
	dir := files(t, map[string]string{
		".dockerignore": "*\n!src\nsrc/*/gen\n!**/keep\n", "a": "1", "src/x/y": "2", "src/x/gen/z": "3", "src/x/gen/keep": "4", "lib/m/keep": "5", "lib/n": "6",
	})
	e := explain(t, dir)
	rules, err := LoadIgnore(dir, "")
	must(t, err)
	tree := mustScan(t, dir, Filter{Exclude: rules.Patterns()}, ScanOptions{})
	var used, scanned []string
	for _, item := range e.Items {
		if item.State == Used {
			used = append(used, item.Path)
		}
	}
	for _, entry := range tree.Entries() {
		if entry.Digest != [32]byte{} {
			scanned = append(scanned, entry.Path)
		}
	}
	if d := cmp.Diff(scanned, used); d != "" {
		t.Errorf("paths used (-scan +explain):\n%s", d)
	}
	got, want := e.Totals, tree.Totals()
	got.IgnoredBytes, want.Hashed, want.HashedBytes = 0, 0, 0
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("totals (-scan +explain):\n%s", d)
	}
}

func TestHumanSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1 kB", 1234: "1.23 kB", 999_499: "999 kB", 999_600: "1 MB", 61_440_000: "61.4 MB", 5e9: "5 GB", 3e12: "3 TB"} {
		if got := humanSize(n); got != want {
			t.Errorf("humanSize(%d): got %s, want %s", n, got, want)
		}
	}
}
