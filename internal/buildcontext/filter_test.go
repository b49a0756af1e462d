package buildcontext

import (
	"context"
	"fmt"
	gofs "io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/tonistiigi/fsutil"
)

// buildkitPaths is what BuildKit would transfer of dir.
func buildkitPaths(dir string, f Filter) ([]string, error) {
	out := []string{}
	err := fsutil.WalkDir(context.Background(), dir, &fsutil.FilterOpt{
		ExcludePatterns: f.Exclude, IncludePatterns: f.Include, FollowPaths: f.Follow,
	}, func(p string, _ gofs.DirEntry, err error) error {
		if err == nil {
			out = append(out, p)
		}
		return err
	})
	slices.SortFunc(out, comparePaths)
	return out, err
}

func compareWithBuildKit(t *testing.T, dir string, f Filter) {
	t.Helper()
	want, wantErr := buildkitPaths(dir, f)
	tree, err := Scan(context.Background(), dir, f, ScanOptions{Workers: 3})
	if (err != nil) != (wantErr != nil) {
		t.Fatalf("%+v: got error %v, want %v", f, err, wantErr)
	}
	if err != nil {
		return
	}
	defer tree.Close()
	if d := cmp.Diff(want, paths(tree)); d != "" {
		t.Fatalf("%+v: paths (-want +got):\n%s", f, d)
	}
}

func TestScanSelectsLikeBuildKit(t *testing.T) {
	dir := files(t, map[string]string{
		"Dockerfile": "d", ".dockerignore": "i", "a/b/c/d.txt": "1", "a/b/e.go": "2", "a/f.go": "3",
		"empty/": "", "link": "-> a/b", "abs": "-> /a/f.go", "out": "-> ../../etc/passwd", "loop": "-> loop",
		"chain": "-> link/c", "a/up": "-> ../x/y", "x/y/z": "4", "x/w": "5", "dangling": "-> nowhere/at/all",
		"l1": "-> l2", "l2": "-> l1", "star/s1": "-> ../a/f.go", "star/s2": "-> ../x", "star/plain": "p", "root": "-> /", "deep": "-> link/../../x/w",
	})
	for _, f := range []Filter{
		{},
		{Exclude: []string{"a"}},
		{Exclude: []string{"*", "!a/b/**"}},
		{Exclude: []string{"*", "!a/b"}, Include: []string{"a"}},
		{Exclude: []string{"a", "!a/b/c"}, Include: []string{"a/b", "x"}},
		{Include: []string{"a/*/c"}},
		{Include: []string{"**/*.go"}},
		{Include: []string{"**", "!**/*.go"}},
		{Include: []string{"."}},
		{Include: []string{"/a"}},
		{Include: []string{"!"}},
		{Exclude: []string{"["}},
		{Follow: []string{}},
		{Follow: []string{"link"}},
		{Follow: []string{"link/e.go"}},
		{Follow: []string{"/chain/d.txt"}},
		{Follow: []string{"abs", "a/up"}},
		{Follow: []string{"out"}},
		{Follow: []string{"loop"}}, {Follow: []string{"l1"}}, {Follow: []string{"l1/x"}},
		{Follow: []string{"dangling"}}, {Follow: []string{"nothing/here"}},
		{Follow: []string{"star/s*"}}, {Follow: []string{"st*/s1"}}, {Follow: []string{"*"}}, {Follow: []string{"l*/c"}},
		{Follow: []string{"root"}}, {Follow: []string{"."}}, {Follow: []string{"/"}}, {Follow: []string{"./a/../x/w"}},
		{Follow: []string{"deep"}},
		{Follow: []string{"Dockerfile", "Dockerfile.dockerignore"}},
		{Follow: []string{"x/w"}, Include: []string{"a"}},
		{Follow: []string{"x/w"}, Include: []string{"x", "/q"}},
		{Follow: []string{"."}, Include: []string{"a"}},
		{Follow: []string{"link"}, Exclude: []string{"a/b/c"}},
		{Follow: []string{"link"}, Exclude: []string{"link"}},
	} {
		compareWithBuildKit(t, dir, f)
	}
}

func TestScanSelectsLikeBuildKitOnRandomTrees(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	names := []string{"a", "b", "ab", "c.go", "d"}
	for round := range 12 {
		dir := t.TempDir()
		for range 40 {
			randomPath(t, rnd, dir, names)
		}
		for range 40 {
			f := Filter{Exclude: randomPatterns(rnd, 4), Include: randomPatterns(rnd, 2)}
			if rnd.IntN(2) == 0 {
				f.Follow = randomPatterns(rnd, 2)
				for i, p := range f.Follow {
					f.Follow[i] = strings.TrimPrefix(p, "!")
				}
			}
			compareWithBuildKit(t, dir, f)
		}
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

// randomPath adds a file, a directory or a link, if it can.
func randomPath(t *testing.T, rnd *rand.Rand, dir string, names []string) {
	t.Helper()
	var parts []string
	for range 1 + rnd.IntN(4) {
		parts = append(parts, names[rnd.IntN(len(names))])
	}
	p := filepath.Join(dir, filepath.Join(parts...))
	if real, err := filepath.EvalSymlinks(filepath.Dir(p)); err == nil && real != filepath.Dir(p) {
		return
	}
	if os.MkdirAll(filepath.Dir(p), 0o755) != nil {
		return
	}
	switch rnd.IntN(6) {
	case 0:
		os.Mkdir(p, 0o755)
	case 1, 2:
		target := path.Join(names[rnd.IntN(len(names))], names[rnd.IntN(len(names))])
		os.Symlink([]string{target, "/" + target, "../" + target}[rnd.IntN(3)], p)
	default:
		os.WriteFile(p, []byte(fmt.Sprint(parts)), 0o644)
	}
}

func randomPatterns(rnd *rand.Rand, n int) []string {
	pieces := []string{"a", "b", "ab", "c.go", "d", "*", "**", "?", "a*", "[ab]", "*.go"}
	var out []string
	for range rnd.IntN(n + 1) {
		var parts []string
		for range 1 + rnd.IntN(3) {
			parts = append(parts, pieces[rnd.IntN(len(pieces))])
		}
		p := path.Join(parts...)
		// fsutil takes "a/*/**" for "below a" when it looks for directories to
		// pass over, and passes over all of them. patternmatcher is right.
		p = strings.ReplaceAll(p, "/*/**", "/*")
		if rnd.IntN(3) == 0 {
			p = "!" + p
		}
		out = append(out, p)
	}
	return out
}

func TestScanNeverEntersWhatNothingReaches(t *testing.T) {
	content := map[string]string{"src/deep/main.go": "m", "src/node_modules/y/z": "z", "lib/x": "x", "docs/a/README.md": "r"}
	for i := range 200 {
		content[fmt.Sprintf("node_modules/p%d/index.js", i)] = "j"
	}
	dir := files(t, content)
	for _, test := range []struct {
		f      Filter
		opened []string
	}{
		{Filter{Exclude: []string{"*", "!src/**"}}, []string{".", "src", "src/deep", "src/node_modules", "src/node_modules/y"}},
		{Filter{Exclude: []string{"*", "!src/**", "**/node_modules"}}, []string{".", "src", "src/deep"}},
		{Filter{Exclude: []string{"**", "!src/*/*.go"}}, []string{".", "src", "src/deep", "src/node_modules"}},
		{Filter{Exclude: []string{"**", "!src/d[a-e]ep"}}, []string{".", "src", "src/deep"}},
		{Filter{Exclude: []string{"**", "!docs/*/README.md"}}, []string{".", "docs", "docs/a"}},
		{Filter{Exclude: []string{"node_modules", "src", "!lib"}}, []string{".", "docs", "docs/a", "lib"}},
		{Filter{Include: []string{"src/deep"}}, []string{".", "src", "src/deep"}},
		{Filter{Include: []string{"src/d*"}}, []string{".", "src", "src/deep"}},
		{Filter{Follow: []string{"Dockerfile"}}, []string{"."}},
		{Filter{Include: []string{"**"}, Exclude: []string{"*"}}, []string{"."}},
	} {
		opened := make(chan string, 1000)
		mustScan(t, dir, test.f, ScanOptions{opened: func(p string) { opened <- p }})
		close(opened)
		var got []string
		for p := range opened {
			got = append(got, p)
		}
		slices.Sort(got)
		if d := cmp.Diff(test.opened, got); d != "" {
			t.Errorf("%+v: directories opened (-want +got):\n%s", test.f, d)
		}
	}
}
