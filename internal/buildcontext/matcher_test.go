package buildcontext

import (
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/moby/patternmatcher"
)

// reference judges paths, which are in tree order, as Docker does: every
// directory is entered.
func reference(patterns, paths []string) (map[string]bool, error) {
	pm, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, err
	}
	infos := map[string]patternmatcher.MatchInfo{}
	out := map[string]bool{}
	for _, p := range paths {
		m, info, err := pm.MatchesUsingParentResults(p, infos[path.Dir(p)])
		if err != nil {
			return out, err
		}
		infos[p] = info
		out[p] = m
	}
	return out, nil
}

// judge does the same with a matcher, and checks on the way that what it calls
// out of reach is.
func judge(t *testing.T, patterns, paths []string, want map[string]bool) error {
	t.Helper()
	m, err := newMatcher(patterns)
	if err != nil {
		return err
	}
	root := m.root()
	folders := map[string]*folder{".": &root}
	settled := map[string]bool{} // directories judged as a whole
	for _, p := range paths {
		f := folders[path.Dir(p)]
		v, in, err := m.enter(f, path.Base(p))
		if err != nil {
			return err
		}
		if n, err := m.name(f, path.Base(p)); err != nil || n != v {
			t.Errorf("patterns %q: %q is %v entered and %v, %v as a name", patterns, p, v, n, err)
		}
		if _, ok := want[p]; !ok {
			t.Errorf("patterns %q: no error at %q", patterns, p)
			return nil
		}
		if v.matched != want[p] {
			t.Errorf("patterns %q: matched(%q): got %v, want %v", patterns, p, v.matched, want[p])
		}
		folders[p] = &in
		if !m.mayTurn(v, &in) {
			settled[p] = v.matched
		}
		for dir := path.Dir(p); dir != "."; dir = path.Dir(dir) {
			if as, ok := settled[dir]; ok && as != want[p] {
				t.Errorf("patterns %q: %q was settled as %v, but %q is %v", patterns, dir, as, p, want[p])
			}
		}
	}
	return nil
}

func checkPatterns(t *testing.T, patterns, paths []string) {
	t.Helper()
	want, wantErr := reference(patterns, paths)
	err := judge(t, patterns, paths, want)
	if (err != nil) != (wantErr != nil) {
		t.Errorf("patterns %q: got error %v, want %v", patterns, err, wantErr)
	}
}

// allPaths returns every path of up to depth components over names.
func allPaths(names []string, depth int) []string {
	var out []string
	for _, n := range names {
		out = append(out, n)
		if depth > 1 {
			for _, p := range allPaths(names, depth-1) {
				out = append(out, n+"/"+p)
			}
		}
	}
	return out
}

func TestMatcherAgreesOnKnownOddities(t *testing.T) {
	paths := allPaths([]string{"a", "b", "ab", "foo", "x.go", "a\nb", "é", "a\xffb", "[", "!a", " a", "a-b"}, 3)
	for _, patterns := range [][]string{
		{"*"}, {"**"}, {"*", "!a"}, {"*", "!a/**"}, {"*", "!a/b"}, {"a", "!a/b"}, {"a/b", "!a"},
		{"**/b"}, {"**b"}, {"b**"}, {"a/**"}, {"a**"}, {"**/*.go"}, {"**/a/**"}, {"a**b"}, {"a/**/b"}, {"a**/b"},
		{"***"}, {"****"}, {"**/**"}, {"*/**"}, {"**/*"}, {"*/*"}, {"?"}, {"a?b"}, {"**?"}, {"*a*"}, {"**a*"},
		{"[ab]"}, {"[^a]"}, {"a[^x]b"}, {"[a-c]b"}, {"[!a]"}, {"[*]"}, {`\a`}, {`\!a`}, {`a\*`}, {`\[`}, {`[b-a]`}, {`[`},
		{"^a"}, {"*^b"}, {"a^"}, {"a]"}, {"\ufeffa"}, {"\ufffd"}, {"a\xffb"}, {"?\xff?"}, {"a?b", "!a\nb"},
		{"!"}, {"!!a"}, {"! a"}, {"!a"}, {"a", "!a", "a"}, {".", "!a"}, {"./a"}, {"a/"}, {"/a"}, {"a/../b"}, {".."}, {"", " ", "a"},
		{"*", "!**/b", "a/b"}, {"a/b", "!a", "b"}, {"*", "!a*/?", "**/foo"}, {"**", "!**/b/a"},
		{"*", "!a", "a/b", "!a/b/foo"}, {"é"}, {"?"}, {"**/é*"}, {"*", "![ab]/foo"}, {"*", `!a\b`}, {"*", "![a-b]*/b"},
		{"*|"}, {"a|b"}, {"*", "!a/*|b"}, {"*", "!a{0}b*"}, {"a{2}"}, {"[|]"}, {"[{]"}, {"**/a|b"}, {"{a}**"},
		{strings.Repeat("?*", 40)}, {"a", "!" + strings.Repeat("*a", 50)},
	} {
		checkPatterns(t, patterns, paths)
	}
}

func TestMatcherAgreesOnRandomPatterns(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	paths := allPaths([]string{"a", "b", "ab", "ba", "a.b"}, 3)
	pieces := []string{"a", "b", "ab", "*", "**", "?", "/", "/", "/", ".", "[ab]", "[^a]", "!", "a*", `\`, "|", "{0}"}
	for range 3000 {
		var patterns []string
		for range 1 + rnd.IntN(4) {
			var sb strings.Builder
			if rnd.IntN(3) == 0 {
				sb.WriteString("!")
			}
			for range 1 + rnd.IntN(5) {
				sb.WriteString(pieces[rnd.IntN(len(pieces))])
			}
			patterns = append(patterns, sb.String())
		}
		checkPatterns(t, patterns, paths)
		if t.Failed() {
			return
		}
	}
}

func FuzzMatcher(f *testing.F) {
	f.Add("*\n!src/**\n**/*.o", "src/a.o\nsrc/b\nlib/x")
	f.Add("a**b\n!a[^x]b", "a/b\naxb\na\xffb/c")
	f.Add("**foo\n!*^", "a\tfoo\nfoo")
	f.Fuzz(func(t *testing.T, patterns, files string) {
		if len(patterns) > 200 || len(files) > 500 || strings.ContainsRune(files, 0) || strings.ContainsRune(patterns, 0) {
			t.Skip()
		}
		checkPatterns(t, strings.Split(patterns, "\n"), withParents(strings.Split(files, "\n")))
	})
}

// withParents cleans paths as a directory walk would yield them, adds their
// directories and puts all in tree order. A tab stands for a newline.
func withParents(files []string) []string {
	seen := map[string]bool{}
	for _, p := range files {
		p = strings.ReplaceAll(path.Clean("/"+p), "\t", "\n")[1:]
		for ; p != "" && p != "."; p = path.Dir(p) {
			seen[p] = true
		}
	}
	var out []string
	for p := range seen {
		out = append(out, p)
	}
	slices.SortFunc(out, comparePaths)
	return out
}
