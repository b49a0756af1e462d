package buildop

import (
	"strings"
	"sync"

	"dhow/internal/errdef"

	"github.com/moby/patternmatcher"
)

// filter is a copy's include and exclude patterns, which are relative to what
// is copied. The zero filter includes everything. Safe for concurrent use.
type filter struct {
	mu       sync.Mutex // patternmatcher compiles as it goes
	include  *patternmatcher.PatternMatcher
	exclude  *patternmatcher.PatternMatcher
	prefixes [][]string // of the include patterns: components before the first wildcard
}

// matchState is what matching a path needs to know of its directory.
type matchState struct{ include, exclude patternmatcher.MatchInfo }

// match is the verdict on one path.
type match struct {
	included bool
	excluded bool // by an exclude pattern, rather than for want of an include
	state    matchState
}

func newFilter(include, exclude []string) (*filter, error) {
	f := &filter{}
	var err error
	if len(include) > 0 {
		if f.include, err = patternmatcher.New(include); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "include patterns %q: %w", include, err)
		}
		for _, p := range f.include.Patterns() {
			f.prefixes = append(f.prefixes, literalPrefix(p.String()))
		}
	}
	if len(exclude) > 0 {
		if f.exclude, err = patternmatcher.New(exclude); err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "exclude patterns %q: %w", exclude, err)
		}
	}
	return f, nil
}

// literalPrefix returns the components of a pattern before the first that
// matches more than itself.
func literalPrefix(p string) []string {
	var out []string
	for _, c := range components(p) {
		if strings.ContainsAny(c, `*?[\`) {
			break
		}
		out = append(out, c)
	}
	return out
}

// match decides on a path below what is copied; parent is the verdict's state
// of its directory.
func (f *filter) match(rel string, parent matchState) (match, error) {
	m := match{included: true}
	if f.include == nil && f.exclude == nil {
		return m, nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var err error
	if f.include != nil {
		if m.included, m.state.include, err = f.include.MatchesUsingParentResults(rel, parent.include); err != nil {
			return match{}, errdef.New(errdef.ErrInvalid, "match include patterns: %w", err)
		}
	}
	if f.exclude != nil {
		if m.excluded, m.state.exclude, err = f.exclude.MatchesUsingParentResults(rel, parent.exclude); err != nil {
			return match{}, errdef.New(errdef.ErrInvalid, "match exclude patterns: %w", err)
		}
		m.included = m.included && !m.excluded
	}
	return m, nil
}

// enter says whether something in a directory may be included.
func (f *filter) enter(rel string, m match) bool {
	if m.included {
		return true
	}
	if m.excluded && !f.exclude.Exclusions() {
		return false
	}
	if f.include == nil || f.include.Exclusions() {
		return true
	}
	parts := components(rel)
	for _, prefix := range f.prefixes {
		if agree(parts, prefix) {
			return true
		}
	}
	return false
}

// agree says whether one path is the beginning of the other.
func agree(a, b []string) bool {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
