package buildcontext

import (
	"errors"
	"path/filepath"
	"strings"

	"dhow/internal/errdef"
)

// matcher decides for a list of patterns what patternmatcher's
// MatchesUsingParentResults decides while a tree is walked from its root, which
// is how Docker applies an ignore file. It is immutable and safe for concurrent
// use.
type matcher struct {
	patterns []pattern
	// source maps a pattern to its place in the list given: blank ones are gone.
	source []int
}

// newMatcher compiles patterns; ErrInvalid for one that has no meaning.
func newMatcher(list []string) (*matcher, error) {
	m := &matcher{}
	for i, raw := range list {
		text := strings.TrimSpace(raw)
		if text == "" {
			continue
		}
		p, err := parsePattern(text)
		if err != nil {
			return nil, errdef.New(errdef.ErrInvalid, "pattern %q: %w", raw, err)
		}
		m.patterns = append(m.patterns, p)
		m.source = append(m.source, i)
	}
	return m, nil
}

func parsePattern(text string) (pattern, error) {
	text = filepath.Clean(text)
	text, exception := strings.CutPrefix(text, "!")
	if text == "" {
		return pattern{}, errors.New(`"!" needs a pattern behind it`)
	}
	if _, err := filepath.Match(text, "."); err != nil {
		return pattern{}, err
	}
	return compile(text, exception)
}

// verdict is what a list of patterns says of one path.
type verdict struct {
	matched bool
	by      int // the pattern that decided, -1 for none
}

// folder is what the patterns make of a directory: all that has to be known to
// judge what is in it.
type folder struct {
	dir  string // ends in a slash; "" for the root
	live []live
}

// live is a pattern that matched the directory, or still may match below it.
// The others can never again take part in a decision.
type live struct {
	index   int // in matcher.patterns
	matched bool
	at      set // of a pattern with steps: where a match stands
}

// root returns the folder of the context directory itself.
func (m *matcher) root() folder {
	f := folder{live: make([]live, len(m.patterns))}
	for i := range m.patterns {
		f.live[i] = live{index: i, at: m.patterns[i].start}
	}
	return f
}

// name judges a path that is not entered: the last component of which is name.
func (m *matcher) name(f *folder, name string) (verdict, error) {
	v := verdict{by: -1}
	for i := range f.live {
		l := &f.live[i]
		p := &m.patterns[l.index]
		if !l.matched {
			// Like patternmatcher: what would not change the outcome so far is
			// not even looked at, and so does not count as matched below.
			if p.exception != v.matched {
				continue
			}
			match, err := p.matchBelow(f, l, name)
			if err != nil {
				return verdict{}, err
			}
			if !match {
				continue
			}
		}
		v = verdict{matched: !p.exception, by: l.index}
	}
	return v, nil
}

// enter judges the directory name in f and returns what its content needs.
func (m *matcher) enter(f *folder, name string) (verdict, folder, error) {
	v := verdict{by: -1}
	in := folder{dir: f.dir + name + "/"}
	for i := range f.live {
		l := f.live[i]
		p := &m.patterns[l.index]
		if !l.matched && p.exception == v.matched {
			match, err := p.matchBelow(f, &l, name)
			if err != nil {
				return verdict{}, folder{}, err
			}
			l.matched = match
		}
		if l.matched {
			v = verdict{matched: !p.exception, by: l.index}
		}
		if p.opaque == nil {
			l.at = p.advance(l.at, in.dir[len(f.dir):])
			// A match that ends in a slash is none: no path does.
			l.at &^= p.accept()
		}
		if l.matched || l.at != 0 || p.opaque != nil && p.opaque.below(in.dir) {
			in.live = append(in.live, l)
		}
	}
	return v, in, nil
}

// matchBelow reports whether the path of name in f matches the pattern.
func (p *pattern) matchBelow(f *folder, l *live, name string) (bool, error) {
	if p.opaque != nil {
		return p.opaque.match(f.dir + name)
	}
	return p.matchName(l.at, name), nil
}

// mayTurn reports whether something below the directory in, judged as v, can
// be judged otherwise.
//
// A pattern that matched a directory matches everything below it, so the one
// that decided v holds there too and everything before it is overruled. Only a
// later pattern of the other kind, one that did not match yet but still may,
// makes a difference.
func (m *matcher) mayTurn(v verdict, in *folder) bool {
	for i := range in.live {
		l := &in.live[i]
		if l.index > v.by && !l.matched && m.patterns[l.index].exception == v.matched {
			return true
		}
	}
	return false
}
