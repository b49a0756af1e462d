package test

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// An entry is one file of a result, as far as a user can tell it from another.
type entry struct {
	kind    byte // 'f' file, 'd' directory, 'l' link, 'h' hard link, or the tar type
	mode    int64
	owner   string // "uid:gid"
	link    string
	content string
	xattrs  string
}

// A fileTree is a result by clean absolute path; the root itself is left out.
type fileTree map[string]entry

// readTree reads a tar archive or a directory.
func readTree(name string) (fileTree, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return readDir(name)
	}
	tree := fileTree{}
	err = walkTar(name, func(h *tar.Header, r io.Reader) error {
		e := entry{mode: h.Mode & 0o7777, owner: fmt.Sprintf("%d:%d", h.Uid, h.Gid), link: h.Linkname}
		switch h.Typeflag {
		case tar.TypeReg:
			e.kind = 'f'
		case tar.TypeDir:
			e.kind = 'd'
		case tar.TypeSymlink:
			e.kind, e.mode = 'l', 0o777
		case tar.TypeLink:
			// The same file by another name: what it holds is what counts.
			e = tree[clean(h.Linkname)]
			tree[clean(h.Name)] = e
			return nil
		default:
			e.kind = h.Typeflag
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		e.content = string(body)
		for _, key := range slices.Sorted(maps.Keys(h.PAXRecords)) {
			if strings.HasPrefix(key, "SCHILY.xattr.") {
				e.xattrs += key + "=" + strconv.Quote(h.PAXRecords[key]) + " "
			}
		}
		tree[clean(h.Name)] = e
		return nil
	})
	delete(tree, "/")
	return tree, err
}

func clean(name string) string { return path.Clean("/" + name) }

func walkTar(name string, visit func(h *tar.Header, r io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := visit(h, tr); err != nil {
			return fmt.Errorf("%s: %s: %w", name, h.Name, err)
		}
	}
}

func readDir(root string) (fileTree, error) {
	tree := fileTree{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		e := entry{mode: int64(st.Mode & 0o7777), owner: fmt.Sprintf("%d:%d", st.Uid, st.Gid)}
		switch {
		case d.IsDir():
			e.kind = 'd'
		case info.Mode()&fs.ModeSymlink != 0:
			e.kind = 'l'
			e.link, err = os.Readlink(file)
		case info.Mode().IsRegular():
			e.kind = 'f'
			var body []byte
			body, err = os.ReadFile(file)
			e.content = string(body)
		default:
			e.kind = '?'
		}
		tree[clean(filepath.ToSlash(rel))] = e
		return err
	})
	delete(tree, "/")
	return tree, err
}

// A want is a parsed file of expectations; see testdata/README.md.
type want struct {
	lines  []wantLine
	config map[string]string // key of the image config → JSON
	only   bool              // nothing but what is listed, and directories above it
}

type wantLine struct {
	path    string
	absent  bool
	mode    int64 // -1: any
	owner   string
	kind    byte // 0: any
	link    string
	content *string
	pattern *regexp.Regexp
}

func (w *want) wantsConfig() bool { return len(w.config) > 0 }

func parseWant(text string) (*want, error) {
	w := &want{config: map[string]string{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case line == "only":
			w.only = true
		case strings.HasPrefix(line, "config."):
			key, value, _ := strings.Cut(strings.TrimPrefix(line, "config."), " ")
			w.config[key] = strings.TrimSpace(value)
		default:
			l, err := parseLine(line)
			if err != nil {
				return nil, fmt.Errorf("want %q: %w", line, err)
			}
			w.lines = append(w.lines, l)
		}
	}
	return w, nil
}

// parseLine reads [!]PATH [MODE] [UID:GID] [-> TARGET | "CONTENT" | ~"PATTERN"];
// a space in PATH is written \x20.
func parseLine(line string) (wantLine, error) {
	name, rest, _ := strings.Cut(line, " ")
	l := wantLine{mode: -1}
	name, l.absent = strings.CutPrefix(name, "!")
	name = strings.ReplaceAll(name, `\x20`, " ")
	if strings.HasSuffix(name, "/") {
		l.kind = 'd'
	}
	l.path = clean(name)
	for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
		var word string
		switch {
		case strings.HasPrefix(rest, "-> "):
			l.kind, l.link, rest = 'l', strings.TrimSpace(rest[3:]), ""
		case strings.HasPrefix(rest, `~"`):
			text, err := strconv.Unquote(rest[1:])
			if err != nil {
				return l, err
			}
			if l.pattern, err = regexp.Compile(text); err != nil {
				return l, err
			}
			l.kind, rest = 'f', ""
		case strings.HasPrefix(rest, `"`), strings.HasPrefix(rest, "`"):
			text, err := strconv.Unquote(rest)
			if err != nil {
				return l, err
			}
			l.kind, l.content, rest = 'f', &text, ""
		default:
			word, rest, _ = strings.Cut(rest, " ")
			if strings.Contains(word, ":") {
				l.owner = word
				break
			}
			mode, err := strconv.ParseInt(word, 8, 64)
			if err != nil {
				return l, err
			}
			l.mode = mode
		}
	}
	return l, nil
}

// compare returns what is not as wanted, a line each.
func (w *want) compare(got fileTree, config map[string]json.RawMessage) []string {
	var diff []string
	listed := map[string]bool{}
	for _, l := range w.lines {
		for p := l.path; p != "/" && !l.absent; p = path.Dir(p) {
			listed[p] = true
		}
		e, ok := got[l.path]
		switch {
		case l.absent && ok:
			diff = append(diff, l.path+" is there")
		case !l.absent && !ok:
			diff = append(diff, l.path+" is not there")
		case !l.absent:
			diff = append(diff, l.compare(e)...)
		}
	}
	if w.only {
		for _, p := range slices.Sorted(maps.Keys(got)) {
			if !listed[p] {
				diff = append(diff, p+" is there and not listed")
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(w.config)) {
		if g, wanted := string(config[key]), w.config[key]; !sameJSON(g, wanted) {
			diff = append(diff, fmt.Sprintf("config.%s: got %s, want %s", key, g, wanted))
		}
	}
	return diff
}

func (l wantLine) compare(e entry) []string {
	var diff []string
	add := func(what string, got, want any) {
		diff = append(diff, fmt.Sprintf("%s: %s: got %v, want %v", l.path, what, got, want))
	}
	if l.kind != 0 && l.kind != e.kind {
		add("kind", string(e.kind), string(l.kind))
	}
	if l.mode >= 0 && l.mode != e.mode {
		add("mode", fmt.Sprintf("%04o", e.mode), fmt.Sprintf("%04o", l.mode))
	}
	if l.owner != "" && l.owner != e.owner {
		add("owner", e.owner, l.owner)
	}
	if l.kind == 'l' && l.link != e.link {
		add("target", e.link, l.link)
	}
	if l.content != nil && *l.content != e.content {
		add("content", strconv.Quote(e.content), strconv.Quote(*l.content))
	}
	if l.pattern != nil && !l.pattern.MatchString(e.content) {
		add("content", strconv.Quote(e.content), "a match of "+l.pattern.String())
	}
	return diff
}

// sameJSON compares two JSON texts by value; an absent key equals null.
func sameJSON(a, b string) bool {
	var va, vb any
	if a != "" && json.Unmarshal([]byte(a), &va) != nil {
		return false
	}
	if b != "" && json.Unmarshal([]byte(b), &vb) != nil {
		return false
	}
	return reflect.DeepEqual(va, vb)
}

// compareTrees returns where two results differ, at most a screenful.
func compareTrees(ours, theirs fileTree) []string {
	var diff []string
	for _, p := range slices.Sorted(maps.Keys(ours)) {
		a := ours[p]
		b, ok := theirs[p]
		switch {
		case !ok:
			diff = append(diff, p+": only dhow has it")
		case a != b:
			a.content, b.content = digest(a.content), digest(b.content)
			diff = append(diff, fmt.Sprintf("%s: dhow %+v, peer %+v", p, a, b))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(theirs)) {
		if _, ok := ours[p]; !ok {
			diff = append(diff, p+": only the peer has it")
		}
	}
	if len(diff) > 20 {
		diff = append(diff[:20], fmt.Sprintf("… and %d more", len(diff)-20))
	}
	return diff
}

// digest shortens long contents for a report.
func digest(content string) string {
	if len(content) < 80 {
		return strconv.Quote(content)
	}
	return fmt.Sprintf("%d bytes %q…", len(content), content[:40])
}
