package buildcontext

import "io"

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

// Rules is a parsed ignore file.
type Rules struct {
	// File is the name given to ParseIgnore.
	File string
	// Rules are in file order; the last that matches decides.
	Rules []Rule
}

// Patterns returns the patterns of all rules, as Filter.Exclude takes them.
func (r *Rules) Patterns() []string { panic("not written yet") }

// ParseIgnore reads an ignore file. A rule that no matcher can take is
// ErrInvalid and names file and line.
func ParseIgnore(r io.Reader, file string) (*Rules, error) { panic("not written yet") }

// FindIgnoreFile returns the path of the ignore file that governs a build:
// DOCKERFILE.dockerignore beside the Dockerfile if there is one, else
// .dockerignore in the context directory, else "".
func FindIgnoreFile(contextDir, dockerfilePath string) (string, error) { panic("not written yet") }
