package buildcontext

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
	"dhow/internal/sys"

	"golang.org/x/sys/unix"
)

// IgnoreFileName is the ignore file of a context directory; behind the name of
// a Dockerfile it makes that Dockerfile's own.
const IgnoreFileName = ".dockerignore"

// maxIgnoreFile limits the size of an ignore file in bytes.
const maxIgnoreFile = 16 << 20

// Rule is one line of an ignore file.
type Rule struct {
	// File and Line say where the rule stands; lines count from 1.
	File string
	Line int
	// Raw is the line as written, without surrounding space.
	Raw string
	// Pattern is Raw in the form the matcher takes, "!" included.
	Pattern string
}

// String is the place and the text of the rule, as in ".dockerignore:3 *.log".
func (r Rule) String() string { return fmt.Sprintf("%s:%d %s", r.File, r.Line, r.Raw) }

// Rules is a parsed ignore file.
type Rules struct {
	// File is the name given to ParseIgnore.
	File string
	// Rules are in file order; the last that matches decides.
	Rules []Rule
}

// Patterns returns the patterns of all rules, as Filter.Exclude takes them.
func (r *Rules) Patterns() []string {
	if r == nil {
		return nil
	}
	out := make([]string, len(r.Rules))
	for i, rule := range r.Rules {
		out[i] = rule.Pattern
	}
	return out
}

// ParseIgnore reads an ignore file with the rules of moby/patternmatcher's
// ignorefile package: a byte order mark is dropped, "#" in the first column
// starts a comment, space around a line and behind "!" goes, paths are cleaned
// and lose one leading slash. A line that no matcher can take is ErrInvalid and
// the message names file and line.
func ParseIgnore(r io.Reader, file string) (*Rules, error) {
	rules := &Rules{File: file}
	lines := bufio.NewScanner(io.LimitReader(r, maxIgnoreFile+1))
	read := 0
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if read += len(line) + 1; read > maxIgnoreFile {
			return nil, errdef.New(errdef.ErrInvalid, "%s: larger than %d MiB", file, maxIgnoreFile>>20)
		}
		if n == 1 {
			line = strings.TrimPrefix(line, "\ufeff")
		}
		if strings.HasPrefix(line, "#") {
			continue
		}
		raw := strings.TrimSpace(line)
		if raw == "" {
			continue
		}
		pattern := normalize(raw)
		if strings.TrimSpace(pattern) != "" {
			if _, err := parsePattern(strings.TrimSpace(pattern)); err != nil {
				return nil, errdef.New(errdef.ErrInvalid, "%s:%d: pattern %q: %w", file, n, raw, err)
			}
		}
		rules.Rules = append(rules.Rules, Rule{File: file, Line: n, Raw: raw, Pattern: pattern})
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, errdef.New(errdef.ErrInvalid, "%s: a line is longer than %d KiB", file, bufio.MaxScanTokenSize>>10)
	} else if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return rules, nil
}

// normalize turns a line into the pattern it stands for.
func normalize(line string) string {
	text, exception := strings.CutPrefix(line, "!")
	if text = strings.TrimSpace(text); text != "" {
		text = filepath.Clean(text)
		if len(text) > 1 {
			text = strings.TrimPrefix(text, "/")
		}
	}
	if exception {
		return "!" + text
	}
	return text
}

// FindIgnoreFile returns the path of the ignore file that governs a build:
// DOCKERFILE.dockerignore beside the Dockerfile if there is one, else
// .dockerignore in the context directory, else "". An empty dockerfilePath
// stands for a Dockerfile that is no file.
func FindIgnoreFile(contextDir, dockerfilePath string) (string, error) {
	candidates := []string{filepath.Join(contextDir, IgnoreFileName)}
	if dockerfilePath != "" {
		candidates = []string{dockerfilePath + IgnoreFileName, candidates[0]}
	}
	for _, path := range candidates {
		switch _, err := os.Lstat(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR):
			return "", fmt.Errorf("look for ignore file: %w", err)
		}
	}
	return "", nil
}

// LoadIgnore finds, reads and parses the ignore file of a build; nil when there
// is none. A symbolic link is followed within the directory that holds it. The
// rules name the file relative to the context where it lies inside.
func LoadIgnore(contextDir, dockerfilePath string) (*Rules, error) {
	path, err := FindIgnoreFile(contextDir, dockerfilePath)
	if err != nil || path == "" {
		return nil, err
	}
	name := path
	if rel, err := filepath.Rel(contextDir, path); err == nil && filepath.IsLocal(rel) {
		name = rel
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("open ignore file: %w", err)
	}
	defer dir.Close()
	f, err := sys.OpenInRoot(dir, filepath.Base(path), unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open ignore file %s: %w", name, err)
	}
	defer f.Close()
	return ParseIgnore(f, name)
}
